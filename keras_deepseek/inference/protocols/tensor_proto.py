"""TensorFlow's `TensorProto` to NumPy and back.

Its values are raw bytes in `tensor_content`, or listed in a field of their kind; a list that is
too short goes on with its last value.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.dtypes import Dtype, dtype_of_numpy, dtype_of_tf_number
from keras_deepseek.inference.protocols.messages import Message, new_message
from keras_deepseek.inference.protocols.tensor_bytes import (
    check_shape,
    count_of,
    from_bytes,
    shape_array,
    string_array,
    strings_of,
    to_bytes,
)

MAX_REPEATED_BYTES = 2**26
"""What a list that goes on with its last value may fill: few bytes of a request ask for it."""


def from_tensor_proto(
    message: Message, where: str, max_repeated_bytes: int = MAX_REPEATED_BYTES
) -> Array:
    """Returns the array of a `TensorProto`. Raw bytes are not copied, and can't be written to.

    Args:
        message: `TensorProto`.
        where: string. What an error names, as in `"Input 'x'"`.
        max_repeated_bytes: integer. The largest array for which a list is filled up.
            Defaults to 64 MiB.

    Raises:
        InvalidInputError: It has no shape, or its values do not fit it; or its dtype is complex,
            quantized or none of a tensor.
    """
    dtype = dtype_of_tf_number(message.dtype, where)
    if message.tensor_shape.unknown_rank:
        raise InvalidInputError(f"{where}: received a tensor without a shape.")
    shape = check_shape((size.size for size in message.tensor_shape.dim), where)
    content = message.tensor_content
    if content and dtype.is_bytes:
        raise InvalidInputError(f"{where}: received strings in tensor_content; use string_val.")
    if content:
        return from_bytes(content, dtype, shape, where)
    values = getattr(message, dtype.tf_values)
    count = count_of(shape)
    if len(values) > count:
        raise InvalidInputError(f"{where}: received {len(values)} values; its shape has {count}.")
    if len(values) < count and count * dtype.numpy.itemsize > max_repeated_bytes:
        raise InvalidInputError(
            f"{where}: received {len(values)} values for a shape that has {count}. At most "
            f"{max_repeated_bytes} bytes are filled with the last value; send tensor_content."
        )
    return shape_array(_fill(_to_array(values, dtype, where), count), shape, where)


def to_tensor_proto(array: Array) -> Message:
    """Returns an array as a `TensorProto`: numbers as raw bytes, strings as a list.

    Args:
        array: array.

    Raises:
        InvalidInputError: No `TensorProto` can hold its dtype.
    """
    message = new_message("tensorflow.TensorProto")
    write_tensor_proto(message, array)
    return message


def write_tensor_proto(message: Message, array: Array) -> None:
    """Writes an array to an empty `TensorProto`, which may stand inside of another message.

    Args:
        message: `TensorProto`.
        array: array.

    Raises:
        InvalidInputError: No `TensorProto` can hold its dtype.
    """
    dtype = dtype_of_numpy(array.dtype)
    message.dtype = dtype.tf_number
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)
    if dtype.is_bytes:
        message.string_val.extend(strings_of(array))
    else:
        message.tensor_content = to_bytes(array)


def from_tensor_protos(messages: Mapping[str, Message]) -> dict[str, Array]:
    """Returns arrays by name.

    Args:
        messages: mapping of `TensorProto` by name.

    Raises:
        InvalidInputError: One of them is not a tensor.
    """
    return {name: from_tensor_proto(messages[name], f"Input {name!r}") for name in messages}


def listed_values(values: Any, dtype: np.dtype[Any], where: str) -> Array:
    """Returns the integers, floats or booleans that a field lists, in one axis.

    Args:
        values: sequence of numbers, of the field's own kind.
        dtype: dtype of NumPy. Integers of the field that it can't hold are refused.
        where: string. What an error names.

    Raises:
        InvalidInputError: A value is beyond the dtype.
    """
    if dtype.kind not in "iu":
        return np.fromiter(values, dtype, len(values))
    wide = np.fromiter(values, np.uint64 if dtype == np.uint64 else np.int64, len(values))
    limits = np.iinfo(dtype)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise InvalidInputError(f"{where}: received a value that is no {dtype.name}.")
    return wide.astype(dtype)


def _to_array(values: Any, dtype: Dtype, where: str) -> Array:
    if dtype.is_bytes:
        return string_array(list(values))
    if dtype.is_float_of_two_bytes:
        return listed_values(values, np.dtype(np.uint16), where).view(dtype.numpy)
    return listed_values(values, dtype.numpy, where)


def _fill(array: Array, count: int) -> Array:
    """Returns `count` values; where there is no last one, TensorFlow has zeros."""
    missing = count - len(array)
    if not missing:
        return array
    if not len(array):
        return np.full(count, b"" if array.dtype == object else 0, array.dtype)
    return np.concatenate([array, np.repeat(array[-1:], missing)])
