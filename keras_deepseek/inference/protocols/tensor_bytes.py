"""Arrays from raw bytes and back: sizes are checked against what is there before they are used.

Little-endian, rows first, nothing between the values; each string of bytes after its length in
four bytes. Both protocols have this form, and neither copies the bytes of numbers.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.dtypes import Dtype

_LENGTH_BYTES = 4
_SHOWN_AXES = 8


def check_shape(sizes: Iterable[Any], where: str) -> tuple[int, ...]:
    """Returns a shape that a client sent.

    Args:
        sizes: iterable. The shape as it came.
        where: string. What an error names, as in `"Input 'x'"`.

    Raises:
        InvalidInputError: A size is negative or no integer.
    """
    shape = tuple(sizes)
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidInputError(
                f"{where}: received shape {_shown(shape)}; expected integers of at least 0."
            )
    return shape


def count_of(shape: Sequence[int]) -> int:
    """Returns how many values a shape has. Python's integers do not overflow."""
    count = 1
    for size in shape:
        count *= size
    return count


def shape_array(array: Array, shape: tuple[int, ...], where: str) -> Array:
    """Returns the values in a shape, which must have as many of them.

    Args:
        array: array.
        shape: tuple of integers.
        where: string. What an error names.

    Raises:
        InvalidInputError: It has not, or it has more axes than NumPy can hold.
    """
    if array.size != count_of(shape):
        raise InvalidInputError(
            f"{where}: received {array.size} values; shape {_shown(shape)} has {count_of(shape)}."
        )
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise InvalidInputError(f"{where}: shape {_shown(shape)} is too large: {error}.") from error


def from_bytes(data: bytes | memoryview, dtype: Dtype, shape: tuple[int, ...], where: str) -> Array:
    """Returns the array that raw bytes hold: a view of them, where they are aligned.

    Args:
        data: bytes.
        dtype: `Dtype`.
        shape: tuple of integers, none of them negative.
        where: string. What an error names.

    Raises:
        InvalidInputError: The bytes are too few or too many, or are no values of the dtype.
    """
    if dtype.is_bytes:
        return _strings_from_bytes(data, shape, where)
    expected = count_of(shape) * dtype.numpy.itemsize
    if len(data) != expected:
        raise InvalidInputError(
            f"{where}: received {len(data)} bytes; shape {_shown(shape)} of {dtype.name} has "
            f"{expected}."
        )
    array: Array = np.frombuffer(data, dtype.numpy)
    if dtype.name == "bool" and array.size and array.view(np.uint8).max() > 1:
        raise InvalidInputError(f"{where}: received a bool that is neither 0 nor 1.")
    # What stands behind JSON may begin anywhere, which some runtimes refuse.
    return shape_array(array if array.flags.aligned else array.copy(), shape, where)


def to_bytes(array: Array) -> bytes:
    """Returns the raw bytes of an array, rows first.

    Args:
        array: array, of numbers or of strings.

    Raises:
        InvalidInputError: An object in it is neither `bytes` nor a string.
    """
    if array.dtype.kind not in "OUS":
        return array.tobytes()
    parts = []
    for value in strings_of(array):
        parts += [struct.pack("<I", len(value)), value]
    return b"".join(parts)


def strings_of(array: Array) -> list[bytes]:
    """Returns the strings of an array as bytes, in order; text is encoded as UTF-8.

    Raises:
        InvalidInputError: An object is neither `bytes` nor a string.
    """
    return [_encode(value) for value in array.ravel().tolist()]


def string_array(values: Sequence[bytes]) -> Array:
    """Returns an array of strings with one axis."""
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
    count = count_of(shape)
    if count * _LENGTH_BYTES > len(data):
        raise InvalidInputError(
            f"{where}: received {len(data)} bytes; {count} strings have {count * _LENGTH_BYTES} "
            "for their lengths alone."
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
            f"{where}: {len(data)} bytes do not hold just {count} strings, each after its length "
            "in 4 bytes."
        )
    return shape_array(string_array(values), shape, where)


def _shown(shape: tuple[Any, ...]) -> str:
    """Returns a shape as an error shows it: a client chose its length."""
    sizes = [f"{size!r:.24}" for size in shape[:_SHOWN_AXES]]
    return f"({', '.join(sizes)}{', ...' if len(shape) > _SHOWN_AXES else ''})"
