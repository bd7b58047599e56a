"""Conversion of arrays from and to raw bytes.

The values are little-endian, in C order, without gaps. Each byte string follows its length, which
has four bytes. Both protocols use this form. Numbers are not copied, and all sizes are compared
with the bytes that are there before they are used.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.dtypes import Dtype

_LENGTH_BYTES = 4
_MAX_FORMATTED_AXES = 8


def check_shape(sizes: Iterable[Any], where: str) -> tuple[int, ...]:
    """Checks a shape from a client, and returns it as a tuple of integers of at least 0."""
    shape = tuple(sizes)
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInputError(
                f"{where}: received shape {_format_shape(shape)}; expected integers of at least 0."
            )
    return shape


def check_tensors(kinds: Mapping[str, tuple[Dtype, tuple[int, ...]]], signature: Signature) -> None:
    """Checks the names, dtypes and shapes of a request before arrays are made of its values.

    `kinds` has the dtype and the shape of each input by its name.
    """
    signature.check_shapes({name: shape for name, (_, shape) in kinds.items()})
    for spec in signature.inputs:
        dtype, _ = kinds[spec.name]
        if dtype.is_bytes != (spec.dtype == "object"):
            raise InvalidInputError(
                f"Input {spec.name!r}: received {'text' if dtype.is_bytes else dtype.name}; "
                f"expected {spec}."
            )


def check_count(count: int, shape: tuple[int, ...], where: str) -> None:
    """Raises an error if a shape has another number of values than a client sent."""
    if count != math.prod(shape):
        raise InvalidInputError(
            f"{where}: received {count} values; shape {_format_shape(shape)} has "
            f"{math.prod(shape)}."
        )


def shape_array(array: Array, shape: tuple[int, ...], where: str) -> Array:
    """Reshapes an array to the shape that a client sent.

    Raises `InvalidInputError` for another number of values, or more axes than NumPy allows.
    """
    check_count(array.size, shape, where)
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidInputError(
            f"{where}: shape {_format_shape(shape)} is too large: {error}."
        ) from error


def from_bytes(data: bytes | memoryview, dtype: Dtype, shape: tuple[int, ...], where: str) -> Array:
    """Converts raw bytes to an array: a view if they are aligned, otherwise a copy.

    `shape` has passed `check_shape`.
    """
    if dtype.is_bytes:
        return _strings_from_bytes(data, shape, where)
    expected = math.prod(shape) * dtype.numpy.itemsize
    if len(data) != expected:
        raise InvalidInputError(
            f"{where}: received {len(data)} bytes; shape {_format_shape(shape)} of {dtype.name} "
            f"has {expected}."
        )
    array: Array = np.frombuffer(data, dtype.numpy)
    if dtype.name == "bool" and array.size and array.view(np.uint8).max() > 1:
        raise InvalidInputError(f"{where}: received a bool that is neither 0 nor 1.")
    # Raw bytes after JSON may start at any address. Some runtimes refuse unaligned arrays.
    return shape_array(array if array.flags.aligned else array.copy(), shape, where)


def to_bytes(array: Array) -> bytes:
    """Converts an array of numbers or strings to raw bytes."""
    if array.dtype.kind not in "OUS":
        return array.tobytes()
    parts = []
    for value in strings_of(array):
        parts += [struct.pack("<I", len(value)), value]
    return b"".join(parts)


def strings_of(array: Array) -> list[bytes]:
    """Returns a list with each string of an array as `bytes`, in C order. Text becomes UTF-8."""
    return [_encode(value) for value in array.ravel().tolist()]


def string_array(values: Sequence[bytes | str]) -> Array:
    """Returns an array of objects with one axis, with a string each."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _encode(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if isinstance(value, bytes):
        return value
    raise InvalidInputError(f"Expected bytes or a string; received {type(value).__name__}.")


def _strings_from_bytes(data: bytes | memoryview, shape: tuple[int, ...], where: str) -> Array:
    count = math.prod(shape)
    if count * _LENGTH_BYTES > len(data):
        raise InvalidInputError(
            f"{where}: received {len(data)} bytes; {count} strings need {count * _LENGTH_BYTES} "
            "for their lengths."
        )
    values: list[bytes] = []
    position = 0
    while position < len(data) and len(values) < count:
        begin = position + _LENGTH_BYTES
        length = int.from_bytes(data[position:begin], "little")
        position = begin + length
        if position > len(data):
            break
        values.append(bytes(data[begin:position]))
    if len(values) != count or position != len(data):
        raise InvalidInputError(
            f"{where}: received {len(data)} bytes; expected {count} strings, each after its length "
            "in 4 bytes, and nothing else."
        )
    return shape_array(string_array(values), shape, where)


def _format_shape(shape: tuple[Any, ...]) -> str:
    """Formats a shape for an error message, shortened because a client chose its length."""
    sizes = [f"{size!r:.24}" for size in shape[:_MAX_FORMATTED_AXES]]
    return f"({', '.join(sizes)}{', ...' if len(shape) > _MAX_FORMATTED_AXES else ''})"
