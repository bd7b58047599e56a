"""The dtypes of tensors in each protocol, and the conversion of arrays from and to raw bytes.

Byte strings are arrays of dtype `object` that hold `bytes`. The values are little-endian, in C
order, without gaps. Each byte string follows its length, which has four bytes. Both protocols use
this form. Numbers are not copied, and all sizes are compared with the bytes that are there before
they are used.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, find_dtype
from keras_deepseek.errors import InvalidInputError

_LENGTH_BYTES = 4
_MAX_FORMATTED_AXES = 8


@dataclass(frozen=True)
class Dtype:
    """One dtype, with its names in each protocol.

    Args:
        name: NumPy's name, or `"bfloat16"`.
        tf_number: The number in TensorFlow's `DataType`.
        tf_values: The field of `TensorProto` that lists the values.
        open_inference_values: The field of `InferTensorContents` that lists the values. Empty if
            there is none, so that values come as raw bytes only.
    """

    name: str
    tf_number: int
    tf_name: str
    tf_values: str
    open_inference: str
    open_inference_values: str

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype."""
        return find_dtype(self.name)

    @property
    def is_bytes(self) -> bool:
        """True for byte strings."""
        return self.name == "object"

    @property
    def is_float_of_two_bytes(self) -> bool:
        """True for 16-bit floats, which `TensorProto` lists as the integers of their bits."""
        return self.name in ("float16", "bfloat16")


DTYPES = (
    Dtype("float32", 1, "DT_FLOAT", "float_val", "FP32", "fp32_contents"),
    Dtype("float64", 2, "DT_DOUBLE", "double_val", "FP64", "fp64_contents"),
    Dtype("int32", 3, "DT_INT32", "int_val", "INT32", "int_contents"),
    Dtype("uint8", 4, "DT_UINT8", "int_val", "UINT8", "uint_contents"),
    Dtype("int16", 5, "DT_INT16", "int_val", "INT16", "int_contents"),
    Dtype("int8", 6, "DT_INT8", "int_val", "INT8", "int_contents"),
    Dtype("object", 7, "DT_STRING", "string_val", "BYTES", "bytes_contents"),
    Dtype("int64", 9, "DT_INT64", "int64_val", "INT64", "int64_contents"),
    Dtype("bool", 10, "DT_BOOL", "bool_val", "BOOL", "bool_contents"),
    Dtype("bfloat16", 14, "DT_BFLOAT16", "half_val", "BF16", ""),
    Dtype("uint16", 17, "DT_UINT16", "int_val", "UINT16", "uint_contents"),
    Dtype("float16", 19, "DT_HALF", "half_val", "FP16", ""),
    Dtype("uint32", 22, "DT_UINT32", "uint32_val", "UINT32", "uint_contents"),
    Dtype("uint64", 23, "DT_UINT64", "uint64_val", "UINT64", "uint64_contents"),
)
"""All dtypes that a request or a response can have."""

_BY_NAME = {dtype.name: dtype for dtype in DTYPES}
_BY_TF_NUMBER = {dtype.tf_number: dtype for dtype in DTYPES}
_BY_OPEN_INFERENCE = {dtype.open_inference: dtype for dtype in DTYPES}


def dtype_of(name: str) -> Dtype:
    """Returns the `Dtype` with a NumPy name. Strings of any kind are `object`."""
    if name.startswith(("<U", "|S", "str", "bytes")):
        name = "object"
    if name not in _BY_NAME:
        raise InvalidInputError(f"dtype {name} can't be sent; expected one of {sorted(_BY_NAME)}.")
    return _BY_NAME[name]


@lru_cache(maxsize=256)
def dtype_of_numpy(dtype: np.dtype[Any]) -> Dtype:
    """Returns the `Dtype` of a NumPy dtype. Cached, because NumPy is slow to make the name."""
    return dtype_of(str(dtype))


def dtype_of_tf_number(number: int, where: str) -> Dtype:
    """Returns the `Dtype` with a number of TensorFlow's `DataType`.

    Complex and quantized dtypes raise an error, which starts with `where`.
    """
    if number not in _BY_TF_NUMBER:
        names = ", ".join(dtype.tf_name for dtype in DTYPES)
        raise InvalidInputError(f"{where}: received DataType {number}; expected one of {names}.")
    return _BY_TF_NUMBER[number]


def dtype_of_open_inference(datatype: object, where: str) -> Dtype:
    """Returns the `Dtype` of an Open Inference datatype name."""
    if not isinstance(datatype, str) or datatype not in _BY_OPEN_INFERENCE:
        names = ", ".join(sorted(_BY_OPEN_INFERENCE))
        raise InvalidInputError(
            f"{where}: received datatype {datatype!r:.100}; expected one of {names}."
        )
    return _BY_OPEN_INFERENCE[datatype]


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
