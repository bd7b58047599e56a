"""What several families read from the `config.json` of a checkpoint, beside its plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_deepseek.errors import InvalidInputError

_TRAINED_LENGTH = "original_max_position_embeddings"
_BY_LENGTH = ("dynamic", "yarn", "llama3", "longrope")
"""The types of scaling that a trained length belongs to."""


def check_required_keys(values: Mapping[str, Any], required: Sequence[str]) -> None:
    """Raises an error where keys are missing without which a model would be guessed.

    Args:
        values: dict. The file.
        required: strings. The keys; they may hold `None`.

    Raises:
        InvalidInputError: Some are. The message names them.
    """
    missing = [name for name in required if name not in values]
    if missing:
        raise InvalidInputError(
            f"The config of a checkpoint needs {', '.join(missing)} as well, of which this one "
            f"(model_type {values.get('model_type')!r}) says nothing. Add it to config.json."
        )


def check_checkpoint_value(values: Mapping[str, Any], name: str, *, allowed: Sequence[Any]) -> None:
    """Raises an error where a key has a value that the family's models have not.

    Args:
        values: dict. The file. The key may be missing.
        name: string. The key.
        allowed: sequence. What it may hold; `None` always.

    Raises:
        InvalidInputError: It holds something else.
    """
    received = values.get(name)
    if received is not None and received not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise InvalidInputError(
            f"`{name}` of the `config.json` must be {expected}, received {received!r}: there is no "
            "such layer here."
        )


def read_object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns what is an object in the file; an empty one where it is missing or null.

    Args:
        values: dict. The file.
        name: string. The key.

    Raises:
        InvalidInputError: It holds something else.
    """
    received = values.get(name)
    if received is not None and not isinstance(received, Mapping):
        raise InvalidInputError(
            f"`{name}` of the `config.json` must be an object or null, received {received!r}."
        )
    return dict(received or {})


def read_rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Returns the base of the rotary angles, and their scaling, from the older or the newer keys.

    Args:
        values: dict. The file: with `rope_theta` and `rope_scaling`, or `rope_parameters` for both.

    Raises:
        InvalidInputError: They are no objects.
    """
    # Both stand in files that a newer release wrote for older ones; they then say the same.
    scaling = read_object(values, "rope_scaling") or read_object(values, "rope_parameters")
    scaling = {name: value for name, value in scaling.items() if value is not None}
    theta = scaling.pop("rope_theta", values.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return float(theta), None
    return float(theta), complete_scaling(scaling, values.get("max_position_embeddings"))


def complete_scaling(scaling: Mapping[str, Any], max_length: Any) -> dict[str, Any]:
    """Returns a scaling with what transformers takes for the keys that a file leaves out.

    The trained length is then the number of positions, and the factor of `longrope` what the latter
    is of the former.

    Args:
        scaling: dict. As in the file.
        max_length: integer or `None`. The `max_position_embeddings` of the file, if it has some.
    """
    completed = dict(scaling)
    kind = completed.get("rope_type", completed.get("type"))
    if kind not in _BY_LENGTH or not isinstance(max_length, int):
        return completed
    trained = completed.setdefault(_TRAINED_LENGTH, max_length)
    if kind == "longrope" and isinstance(trained, int) and trained > 0:
        completed.setdefault("factor", max_length / trained)
    return completed
