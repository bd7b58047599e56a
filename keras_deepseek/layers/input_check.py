"""The checks that the tensors among the arguments of a call go through, whatever their shape."""

from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError


def check_tensor(name: str, value: Any) -> None:
    """Raises an error where a tensor is needed and something else was given.

    Args:
        name: string. The argument, as the error names it.
        value: What was given.

    Raises:
        InvalidInputError: It is no tensor, such as `None` or a list.
    """
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise InvalidInputError(
            f"`{name}` must be a tensor or a NumPy array, received {_describe(value)}."
        )


def check_integer_tensor(name: str, value: Any) -> None:
    """Raises an error where a tensor is not one of integers.

    Args:
        name: string. The argument, as the error names it.
        value: What was given.

    Raises:
        InvalidInputError: It is no tensor, or one of floats, which half precision would round to
            other integers.
    """
    check_tensor(name, value)
    dtype = keras.backend.standardize_dtype(value.dtype)
    if "int" not in dtype:
        raise InvalidInputError(
            f"`{name}` must be integers, received {dtype}: make its input by "
            "keras.Input(..., dtype='int32')."
        )


def check_floating(inputs: Any, name: str) -> None:
    """Raises an error where the inputs of a layer are not floating-point numbers.

    Without it, frameworks differ: some compute with rounded weights, and some fail inside.

    Args:
        inputs: What the layer was called with.
        name: string. The layer, as the error names it.

    Raises:
        InvalidInputError: They are no tensor, or one of integers, such as token ids.
    """
    if hasattr(inputs, "__array__") and not hasattr(inputs, "dtype"):
        return  # Keras makes a tensor of it.
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


def is_shape(received: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    """Returns whether a shape is the one expected, as far as both are known.

    Args:
        received: tuple. `None` for sizes that are not known.
        expected: tuple. Likewise.
    """
    return len(received) == len(expected) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(received, expected, strict=True)
    )


def _describe(value: Any) -> str:
    return "None" if value is None else type(value).__name__
