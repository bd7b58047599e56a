"""Conversion of TensorFlow's `TensorProto` from and to NumPy arrays.

The values are raw bytes in `tensor_content`, or a list in the field of their type. A list that is
shorter than the shape is filled up with its last value.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.grpc_messages import Message, new_message
from keras_deepseek.inference.protocols.tensor_bytes import (
    Dtype,
    check_shape,
    check_tensors,
    dtype_of_numpy,
    dtype_of_tf_number,
    from_bytes,
    shape_array,
    string_array,
    strings_of,
    to_bytes,
)

MAX_REPEATED_BYTES = 2**26
"""The most that the short lists of a request may fill: a few bytes can ask for any size."""


def bind_tensor_protos(messages: Mapping[str, Message], signature: Signature) -> dict[str, Array]:
    """Converts a request's inputs, `TensorProto` by name, to the arrays of a signature.

    Names, dtypes and shapes are checked before an array is made. So is the total size of the arrays
    that get fewer values than their shape has, and repeat the last one.
    """
    kinds = {name: _kind_of(messages[name], f"Input {name!r}") for name in messages}
    check_tensors(kinds, signature)
    filled = sum(
        math.prod(shape) * dtype.numpy.itemsize
        for name, (dtype, shape) in kinds.items()
        if _is_short(messages[name], dtype, shape)
    )
    _check_filled(filled, MAX_REPEATED_BYTES, "All inputs")
    arrays = {
        name: _read(messages[name], dtype, shape, f"Input {name!r}")
        for name, (dtype, shape) in kinds.items()
    }
    return signature.bind(arrays)


def from_tensor_proto(
    message: Message, where: str, max_repeated_bytes: int = MAX_REPEATED_BYTES
) -> Array:
    """Converts a `TensorProto` to an array: a read-only view if the values are raw bytes.

    If there are fewer values than the shape has, the last one is repeated. `max_repeated_bytes`
    limits the size of such an array.
    """
    dtype, shape = _kind_of(message, where)
    if _is_short(message, dtype, shape):
        _check_filled(math.prod(shape) * dtype.numpy.itemsize, max_repeated_bytes, where)
    return _read(message, dtype, shape, where)


def _read(message: Message, dtype: Dtype, shape: tuple[int, ...], where: str) -> Array:
    content = message.tensor_content
    if content and dtype.is_bytes:
        raise InvalidInputError(f"{where}: received strings in tensor_content; use string_val.")
    if content:
        return from_bytes(content, dtype, shape, where)
    values = getattr(message, dtype.tf_values)
    count = math.prod(shape)
    if len(values) > count:
        raise InvalidInputError(f"{where}: received {len(values)} values; its shape has {count}.")
    return shape_array(_fill(_to_array(values, dtype, where), count), shape, where)


def to_tensor_proto(array: Array) -> Message:
    """Converts an array to a `TensorProto`: numbers as raw bytes, strings as a list."""
    message = new_message("tensorflow.TensorProto")
    write_tensor_proto(message, array)
    return message


def write_tensor_proto(message: Message, array: Array) -> None:
    """Writes an array to an empty `TensorProto`, which may be a field of another message."""
    dtype = dtype_of_numpy(array.dtype)
    message.dtype = dtype.tf_number
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)
    if dtype.is_bytes:
        message.string_val.extend(strings_of(array))
    else:
        message.tensor_content = to_bytes(array)


def listed_values(values: Any, dtype: np.dtype[Any], where: str) -> Array:
    """Returns the numbers or booleans of a repeated field as an array with one axis.

    Raises `InvalidInputError` for a value that is too large for the dtype.
    """
    if dtype.kind not in "iu":
        return np.fromiter(values, dtype, len(values))
    wide = np.fromiter(values, np.uint64 if dtype == np.uint64 else np.int64, len(values))
    limits = np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise InvalidInputError(f"{where}: received a value outside of the range of {dtype.name}.")
    return wide.astype(dtype)


def _kind_of(message: Message, where: str) -> tuple[Dtype, tuple[int, ...]]:
    dtype = dtype_of_tf_number(message.dtype, where)
    if message.tensor_shape.unknown_rank:
        raise InvalidInputError(f"{where}: received a tensor without a shape. Set tensor_shape.")
    return dtype, check_shape((size.size for size in message.tensor_shape.dim), where)


def _is_short(message: Message, dtype: Dtype, shape: tuple[int, ...]) -> bool:
    if message.tensor_content:
        return False
    return len(getattr(message, dtype.tf_values)) < math.prod(shape)


def _check_filled(size: int, max_repeated_bytes: int, where: str) -> None:
    if size > max_repeated_bytes:
        raise InvalidInputError(
            f"{where}: received fewer values than the shape has, which takes {size} bytes. At most "
            f"{max_repeated_bytes} bytes are filled with the last value; send tensor_content."
        )


def _to_array(values: Any, dtype: Dtype, where: str) -> Array:
    if dtype.is_bytes:
        return string_array(list(values))
    if dtype.is_float_of_two_bytes:
        return listed_values(values, np.dtype(np.uint16), where).view(dtype.numpy)
    return listed_values(values, dtype.numpy, where)


def _fill(array: Array, count: int) -> Array:
    """Extends an array to `count` values by its last value, or by zeros if it is empty."""
    if len(array) == count:
        return array
    last = array[-1] if len(array) else b"" if array.dtype == object else 0
    filled: Array = np.full(count, last, array.dtype)
    filled[: len(array)] = array
    return filled
