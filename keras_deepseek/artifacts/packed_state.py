"""Nested values, such as the state of a training, as JSON values and a list of arrays."""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.divided_array import ArrayPieces
from keras_deepseek.errors import InvalidInputError

_KIND = "$kind"
"""The key that marks values which JSON has no type for. A dict that holds this key itself is
stored as a list of pairs."""

_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "dict": dict}

_MAX_DEPTH = 64

_MAX_WORD = 2**53
"""Larger integers are written in hexadecimal, since some readers of JSON round them."""


def pack_state(state: Any) -> tuple[Any, list[Any]]:
    """Converts nested values into JSON values and a list of arrays.

    In JSON, the index in the list stands for an array. The values may be `None`, booleans, numbers,
    strings, bytes, NumPy arrays and scalars, `ArrayPieces`, and dicts, lists, tuples and sets of
    them.
    """
    arrays: list[Any] = []
    return _pack(state, arrays, 0), arrays


def unpack_state(packed: Any, arrays: Sequence[Any]) -> Any:
    """Restores the nested values from the two results of `pack_state`."""
    if isinstance(packed, list):
        return [unpack_state(value, arrays) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if _KIND not in packed:
        return {name: unpack_state(value, arrays) for name, value in packed.items()}
    kind, value = packed[_KIND], packed["value"]
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](unpack_state(value, arrays))
    readers: dict[str, Callable[[Any], Any]] = {
        "array": lambda index: arrays[index],
        "scalar": lambda index: arrays[index][()],
        "float": float,
        "integer": lambda text: int(text, 16),
        "bytes": base64.b64decode,
    }
    return readers[kind](value)


def _pack(value: Any, arrays: list[Any], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"The state is nested more than {_MAX_DEPTH} levels deep.")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) <= _MAX_WORD else _mark("integer", hex(value))
    if type(value) is float:
        return value if math.isfinite(value) else _mark("float", repr(value))
    if type(value) is bytes:
        return _mark("bytes", base64.b64encode(value).decode("ascii"))
    is_divided = isinstance(value, ArrayPieces)
    if is_divided or (isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O"):
        arrays.append(value if is_divided else np.asarray(value))
        kind = "scalar" if isinstance(value, np.generic) else "array"
        return _mark(kind, len(arrays) - 1)
    return _pack_items(value, arrays, depth)


def _pack_items(value: Any, arrays: list[Any], depth: int) -> Any:
    if isinstance(value, Mapping):
        if all(type(name) is str for name in value) and _KIND not in value:
            return {name: _pack(item, arrays, depth + 1) for name, item in value.items()}
        pairs = [tuple(pair) for pair in value.items()]
        return _mark("dict", _pack(pairs, arrays, depth + 1))
    if type(value) in (list, tuple, set):
        items = [_pack(item, arrays, depth + 1) for item in value]
        return items if type(value) is list else _mark(type(value).__name__, items)
    raise InvalidInputError(
        f"A {type(value).__name__} can't be saved: {value!r:.80}. Expected numbers, strings, NumPy "
        "arrays, and dicts, lists, tuples and sets of them."
    )


def _mark(kind: str, value: Any) -> dict[str, Any]:
    return {_KIND: kind, "value": value}
