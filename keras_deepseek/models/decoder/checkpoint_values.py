"""Readers of `config.json` values that several families share, such as the rotary settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_deepseek.errors import InvalidInputError

_TRAINED_LENGTH = "original_max_position_embeddings"
_BY_LENGTH = ("dynamic", "yarn", "llama3", "longrope")
"""The types of rotary scaling that need the length the model was trained with."""


def check_required_keys(values: Mapping[str, Any], required: Sequence[str]) -> None:
    """Raises an error if a `config.json` lacks a required key.

    The value of a key may be `None`.
    """
    missing = [name for name in required if name not in values]
    if missing:
        raise InvalidInputError(
            f"The config of the checkpoint (model_type {values.get('model_type')!r}) lacks "
            f"{', '.join(missing)}. Add it to config.json."
        )


def check_checkpoint_value(values: Mapping[str, Any], name: str, *, allowed: Sequence[Any]) -> None:
    """Raises an error if a key of a `config.json` has a value that is not supported.

    A missing key and `None` are supported.
    """
    received = values.get(name)
    if received is not None and received not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise InvalidInputError(
            f"`{name}` in the config.json must be {expected}, received {received!r}, which is not "
            "supported."
        )


def read_object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the dict at a key of a `config.json`; an empty dict if it is missing or null."""
    received = values.get(name)
    if received is not None and not isinstance(received, Mapping):
        raise InvalidInputError(
            f"`{name}` in the config.json must be an object or null, received {received!r}."
        )
    return dict(received or {})


def read_rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Reads the rotary embedding's `rope_theta` and scaling from a `config.json`.

    Older files have the keys `rope_theta` and `rope_scaling`, newer ones `rope_parameters` for
    both.
    """
    # A file may have both, with the same values.
    scaling = read_object(values, "rope_scaling") or read_object(values, "rope_parameters")
    scaling = {name: value for name, value in scaling.items() if value is not None}
    theta = scaling.pop("rope_theta", values.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return float(theta), None
    return float(theta), complete_scaling(scaling, values.get("max_position_embeddings"))


def complete_scaling(scaling: Mapping[str, Any], max_length: Any) -> dict[str, Any]:
    """Fills in the missing keys of a rotary scaling with the defaults of transformers.

    The default of the trained length is `max_length`. The default factor of `longrope` is
    `max_length` divided by the trained length.
    """
    completed = dict(scaling)
    kind = completed.get("rope_type", completed.get("type"))
    if kind not in _BY_LENGTH or not isinstance(max_length, int):
        return completed
    trained = completed.setdefault(_TRAINED_LENGTH, max_length)
    if kind == "longrope" and isinstance(trained, int) and trained > 0:
        completed.setdefault("factor", max_length / trained)
    return completed
