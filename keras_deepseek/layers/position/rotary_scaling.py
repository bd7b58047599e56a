"""Rotation speeds of a rotary embedding, and the scalings by which checkpoints slow them down.

They are computed once, in float64, for `RotaryEmbedding`; `MultiHeadLatentAttention` uses the
factor of its scores. NumPy only.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message

_LENGTH = "original_max_position_embeddings"

REQUIRED = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", _LENGTH},
    "yarn": {"factor", _LENGTH},
    "llama3": {"factor", _LENGTH, "low_freq_factor", "high_freq_factor"},
    "longrope": {"factor", _LENGTH, "short_factor", "long_factor"},
}
"""The required keys of each `rope_type`."""

_LISTS = ("short_factor", "long_factor")

OPTIONAL = {
    "yarn": {
        "attention_factor",
        "attn_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "longrope": {"attention_factor"},
}


@dataclass(frozen=True)
class RotaryFrequencies:
    """The angles per token and the amplitude of a rotary embedding.

    Args:
        base: Array of `rotary_dim // 2` angles, in radians a token.
        long: The angles for sequences beyond the trained length, or `None` for the same angles.
        stretch_exponents: Array, or `None`. Beyond the trained length each angle is multiplied by a
            common stretch to the power of its exponent.
        amplitude: The factor of cosine and sine.
    """

    base: Array
    long: Array | None = None
    stretch_exponents: Array | None = None
    amplitude: float = 1.0


def check_scaling(scaling: Mapping[str, Any] | None, argument: str = "scaling") -> dict[str, Any]:
    """Validates a checkpoint's `rope_scaling`, and returns it with its `rope_type`.

    `argument` is its name in errors. `None` is no scaling.
    """
    if scaling is None:
        return {"rope_type": "default"}
    if not isinstance(scaling, Mapping):
        raise InvalidInputError(
            f"`{argument}` must be None or a dict such as a checkpoint's `rope_scaling`, received "
            f"{scaling!r}."
        )
    values = dict(scaling)
    older_name = values.pop("type", None)  # Some checkpoints have both names.
    kind = values.pop("rope_type", older_name)
    if kind is None:
        raise InvalidInputError(
            f"`{argument}` has no 'rope_type', which must be one of {', '.join(sorted(REQUIRED))}; "
            f"received {dict(scaling)!r}."
        )
    if kind not in list(REQUIRED):  # A list, because `kind` may be unhashable.
        raise InvalidInputError(unknown_name_message(f"rope_type of `{argument}`", kind, REQUIRED))
    _check_names(kind, values, scaling, argument)
    for name, value in values.items():
        if value is not None or name in REQUIRED[kind]:
            values[name] = _check_value(f"{argument}[{name!r}]", name, value)
    if kind == "llama3" and not values["low_freq_factor"] < values["high_freq_factor"]:
        raise InvalidInputError(
            f"`low_freq_factor` of a llama3 `{argument}` must be below `high_freq_factor`, "
            f"received {values['low_freq_factor']!r} and {values['high_freq_factor']!r}."
        )
    if kind == "yarn" and _beta_fast(values) < _beta_slow(values):
        raise InvalidInputError(
            f"`beta_fast` of a yarn `{argument}`, by default 32, must not be below `beta_slow`, by "
            f"default 1, received {_beta_fast(values)!r} and {_beta_slow(values)!r}."
        )
    return {"rope_type": kind, **values}


def _check_names(
    kind: str, names: Collection[str], scaling: Mapping[str, Any], argument: str
) -> None:
    """Raises an error if a key of a scaling of this `rope_type` is unknown or missing."""
    allowed = REQUIRED[kind] | OPTIONAL.get(kind, set())
    for name in names:
        if name not in allowed:
            raise InvalidInputError(
                unknown_name_message(f"key of a {kind} `{argument}`", name, allowed)
            )
    missing = sorted(REQUIRED[kind] - set(names))
    if missing:
        raise InvalidInputError(
            f"A {kind} `{argument}` needs {', '.join(missing)} as well; received {dict(scaling)!r}."
        )


def _check_value(path: str, name: str, value: Any) -> Any:
    """Returns one validated value of a `rope_scaling`, or raises an error that names its path."""
    if name == "truncate":
        return check_boolean(path, value)
    if name in _LISTS:
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            raise InvalidInputError(
                f"`{path}` must be a list with one number for each pair, received {value!r}."
            )
        return [check_number(f"{path}[{i}]", divisor, above=0) for i, divisor in enumerate(value)]
    if name.startswith("mscale"):
        return check_number(path, value, minimum=0)
    if name == _LENGTH:
        return check_integer(path, value, minimum=2)  # Its logarithm is a divisor.
    return check_number(path, value, above=0)


def _beta_fast(scaling: Mapping[str, Any]) -> float:
    return scaling.get("beta_fast") or 32


def _beta_slow(scaling: Mapping[str, Any]) -> float:
    return scaling.get("beta_slow") or 1


def compute_frequencies(
    dim: int, max_wavelength: float, scaling: Mapping[str, Any]
) -> RotaryFrequencies:
    """Returns the rotation angles per token of `dim // 2` pairs of features."""
    exponents = np.arange(0, dim, 2, dtype="float64") / dim
    base = max_wavelength**-exponents
    kind = scaling["rope_type"]
    if kind == "linear":
        return RotaryFrequencies(base / scaling["factor"])
    if kind == "dynamic":
        # A larger wavelength slows the slowest pair by the whole stretch, the fastest not at all.
        return RotaryFrequencies(base, stretch_exponents=-np.arange(0, dim, 2) / max(dim - 2, 1))
    if kind == "yarn":
        return _yarn(base, max_wavelength, scaling)
    if kind == "llama3":
        return RotaryFrequencies(_llama3(base, scaling))
    if kind == "longrope":
        return _longrope(base, scaling)
    return RotaryFrequencies(base)


def compute_score_factor(scaling: Mapping[str, Any] | None) -> float:
    """Returns the factor of DeepSeek's attention scores under YaRN: the square of its `mscale`."""
    mscale = (scaling or {}).get("mscale_all_dim") or 0.0
    return _mscale(scaling["factor"], mscale) ** 2 if scaling and mscale else 1.0


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn(base: Array, max_wavelength: float, scaling: Mapping[str, Any]) -> RotaryFrequencies:
    """Applies YaRN scaling: slows slowly rotating pairs, leaves fast ones unchanged."""
    half, factor = len(base), scaling["factor"]

    def pair_that_turns(times: float) -> float:
        angle = 2 * math.pi * times / scaling[_LENGTH]
        return -half * math.log(angle) / math.log(max_wavelength)

    first = pair_that_turns(_beta_fast(scaling))
    last = pair_that_turns(_beta_slow(scaling))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    width = (last - first) or 0.001
    slowed = np.clip((np.arange(half) - first) / width, 0, 1)
    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        numerator, denominator = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if not (numerator and denominator):
            numerator, denominator = 1.0, 0.0
        amplitude = _mscale(factor, numerator) / _mscale(factor, denominator)
        amplitude *= scaling.get("attn_factor") or 1.0
    return RotaryFrequencies(base * (1 - slowed) + base / factor * slowed, amplitude=amplitude)


def _llama3(base: Array, scaling: Mapping[str, Any]) -> Array:
    """Applies Llama 3's scaling: slows pairs of long wavelengths, and blends towards short ones."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling[_LENGTH] * base / (2 * math.pi)
    unscaled_share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(unscaled_share * base + (1 - unscaled_share) * base / scaling["factor"])


def _longrope(base: Array, scaling: Mapping[str, Any]) -> RotaryFrequencies:
    """Applies LongRoPE scaling: divides each pair's angle by a factor of its own."""
    factor, length = scaling["factor"], scaling[_LENGTH]
    divisors = {name: np.asarray(scaling[name], "float64") for name in REQUIRED["longrope"]}
    for name in ("short_factor", "long_factor"):
        if divisors[name].shape != base.shape:
            raise InvalidInputError(
                f"`{name}` of a longrope scaling must have one number for each of the {len(base)} "
                f"pairs, received shape {divisors[name].shape}."
            )
    amplitude = scaling.get("attention_factor")
    if amplitude is None:
        amplitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
    return RotaryFrequencies(
        base / divisors["short_factor"], base / divisors["long_factor"], amplitude=amplitude
    )
