"""Checks of the dtype and shape of the tensors in a layer's call."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.quantized_layers import CompositeLayer

Shape = tuple[int | None, ...]
"""The sizes of a tensor; `None` for unknown ones."""


def check_tensor(name: str, value: Any) -> None:
    """Raises an error if an argument is not a tensor, such as `None` or a list."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise InvalidInputError(
            f"`{name}` must be a tensor or a NumPy array, received {_describe(value)}."
        )


def check_integer_tensor(name: str, value: Any) -> None:
    """Raises an error if an argument is not an integer tensor.

    Floats are refused because half precision would round them to other integers.
    """
    check_tensor(name, value)
    dtype = keras.backend.standardize_dtype(value.dtype)
    if "int" not in dtype:
        raise InvalidInputError(
            f"`{name}` must be integers, received {dtype}. Create its input with "
            "keras.Input(..., dtype='int32')."
        )


def check_tokens(name: str, tensor: Any, inputs: Any, *, is_integer: bool = False) -> None:
    """Raises an error if an argument does not have one entry for each token of the inputs.

    Inputs are `(batch_size, ..., dim)`. `None` passes. With `is_integer`, floats are refused: half
    precision would round them to other tokens.
    """
    if tensor is None:
        return
    check_tensor(name, tensor)
    received, expected = tuple(tensor.shape), tuple(inputs.shape[:-1])
    if not is_shape(received, expected):
        raise InvalidInputError(
            f"`{name}` must have one entry for each token: for inputs of shape "
            f"{tuple(inputs.shape)} the shape {expected}, received {received}."
        )
    if is_integer:
        check_integer_tensor(name, tensor)


def check_floating(inputs: Any, name: str) -> None:
    """Raises an error if the inputs of a layer do not have a floating-point dtype.

    Without this check frameworks differ: some compute with rounded weights, and some fail inside.
    """
    if hasattr(inputs, "__array__") and not hasattr(inputs, "dtype"):
        return  # Keras converts it to a tensor.
    if not hasattr(inputs, "shape") or not hasattr(inputs, "dtype"):
        raise InvalidInputError(
            f"{name!r} expects a floating-point tensor as its inputs, received {_describe(inputs)}."
        )
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise InvalidInputError(
            f"{name!r} expects floating-point inputs, received {dtype} of shape "
            f"{tuple(inputs.shape)}. If they are token ids, embed them first; cast other numbers."
        )


def is_shape(received: Shape, expected: Shape) -> bool:
    """Returns true if a shape matches the expected one. An unknown size, `None`, matches any."""
    return len(received) == len(expected) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(received, expected, strict=True)
    )


def _describe(value: Any) -> str:
    return "None" if value is None else type(value).__name__


_RANK = 3


def read_dim(layer: keras.Layer, input_shape: Shape) -> int:
    """Returns the number of features of a token, from the shape `(batch_size, length, dim)`.

    It sets the layer's `input_spec`.
    """
    dim = check_shape(layer.name, input_shape)
    layer.input_spec = keras.InputSpec(ndim=_RANK, axes={-1: dim})
    return dim


def check_shape(name: str, shape: Shape | None) -> int:
    """Returns the size of the last axis of a sequence's shape; raises an error for other shapes.

    `name` is that of the layer, for the error.
    """
    is_sequence = shape is not None and len(shape) == _RANK
    return _read_last(name, shape if is_sequence else None, "(batch_size, length, dim)", shape)


def read_last_dim(
    layer: keras.Layer,
    input_shape: Shape,
    *,
    min_rank: int = 2,
    axes: str = "(batch_size, ..., dim)",
) -> int:
    """Returns the size of an input's last axis, and sets the layer's `input_spec`.

    `axes` describes the expected axes in the error.
    """
    shape = input_shape if len(input_shape) >= min_rank else None
    dim = _read_last(layer.name, shape, axes, input_shape)
    layer.input_spec = keras.InputSpec(min_ndim=min_rank, axes={-1: dim})
    return dim


def _read_last(name: str, shape: Shape | None, axes: str, received: Shape | None) -> int:
    """Returns the last size of a valid shape; for `None`, raises an error that shows `received`."""
    dim = None if shape is None else shape[-1]
    if dim is None:
        raise InvalidInputError(
            f"{name!r} needs inputs of shape {axes} with a known dim, received "
            f"{None if received is None else tuple(received)}."
        )
    return dim


class FloatingInputLayer(CompositeLayer):
    """A layer that raises an error if its inputs are not a floating-point tensor.

    The check runs before `build` and `input_spec`, for eager and symbolic inputs. These two know
    only shapes, and would report a different error for `None` or for token ids.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args or "inputs" in kwargs:  # Otherwise Keras reports that they are missing.
            check_floating(args[0] if args else kwargs["inputs"], self.name)
        return super().__call__(*args, **kwargs)


_WIDE = ("int32", "uint32", "int64", "uint64")


def bound_indices(values: Any, count: Any) -> tuple[Any, Any]:
    """Returns int32 row indices with invalid ones replaced by 0, and a mask of the valid ones.

    Frameworks treat an index outside a table differently: one raises an error, one takes the last
    row, one returns zeros, and compiled code may differ again. The layer decides what to return
    there, such as NaN. It can't raise an error, because values are unknown while a step is traced.
    """
    if keras.backend.standardize_dtype(values.dtype) not in _WIDE:
        values = ops.cast(values, "int32")  # The count may not fit into 8 or 16 bits.
    limit = count if isinstance(count, int) else ops.cast(count, values.dtype)
    exists = ops.logical_and(values >= 0, values < limit)
    return ops.cast(ops.where(exists, values, 0), "int32"), exists
