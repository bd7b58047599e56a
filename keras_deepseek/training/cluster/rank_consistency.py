"""A check that all processes are about to run the same training steps."""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.errors import InvalidInputError

_LONGEST = 200  # The most characters of a value that an error shows.


def check_consistent_across_ranks(processes: Processes, arguments: Mapping[str, Any]) -> None:
    """Raises an error on all ranks if their arguments differ.

    Their weights would drift apart, or they would wait for each other forever. All processes must
    call it. Numbers, strings and structures of them are compared; for other objects, only the
    types.
    """
    if processes.world_size == 1:
        return
    description = json.dumps({name: str(_describe(value)) for name, value in arguments.items()})
    descriptions = [json.loads(str(text[0])) for text in processes.gather(np.array([description]))]
    for name in arguments:
        values = [description[name] for description in descriptions]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            first, second = values[0], values[other]
            raise InvalidInputError(
                f"The processes differ in {name}: rank 0 has {_shorten(first, second)}, rank "
                f"{other} has {_shorten(second, first)}. Build the same model on each, with the "
                "same arguments."
            )


def data_shapes(*data: Any) -> list[Any]:
    """Returns the shapes of arrays, or of nested arrays; for other data, their kind."""
    shapes: list[Any] = []
    for structure in data:
        leaves = (
            keras.tree.flatten(structure) if isinstance(structure, dict | tuple) else [structure]
        )
        shapes += [
            tuple(leaf.shape) if hasattr(leaf, "shape") else _describe(leaf) for leaf in leaves
        ]
    return shapes


def plain_attributes(value: Any) -> dict[str, Any]:
    """Returns an object's class name, and its public attributes that are plain values.

    It serves objects whose config may be unknown, such as optimizers.
    """
    attributes = {
        name: attribute for name, attribute in vars(value).items() if not name.startswith("_")
    }
    plain = {name: attribute for name, attribute in attributes.items() if _is_plain(attribute)}
    return {"class": type(value).__name__, **plain}


def _describe(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(map(_describe, value))
    is_known = _is_plain(value) or isinstance(value, dict) or is_dataclass(value)
    return value if is_known else type(value).__name__


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _shorten(text: str, other: str) -> str:
    """Returns the part of a long text around the first difference from another."""
    if len(text) <= _LONGEST:
        return text
    pairs = zip(text, other, strict=False)
    differs = next((index for index, (a, b) in enumerate(pairs) if a != b), len(other))
    start = max(0, differs - _LONGEST // 4)
    return ("..." if start else "") + text[start : start + _LONGEST] + "..."
