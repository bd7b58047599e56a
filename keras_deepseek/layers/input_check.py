"""Checks of the dtype and shape of the tensors in a layer's call."""

from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError

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

    Without it frameworks differ: some compute with rounded weights, and some fail inside.
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
