"""The checks that the tensors among the arguments of a call go through, whatever their shape."""

from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError

Shape = tuple[int | None, ...]
"""The sizes of a tensor, `None` where one is not known."""


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


def check_tokens(name: str, tensor: Any, inputs: Any, *, is_integer: bool = False) -> None:
    """Refuses a tensor that has not one entry for each token of the inputs.

    Args:
        name: string. The argument, as the error names it.
        tensor: Tensor or `None`, which passes.
        inputs: Tensor of shape `(batch_size, ..., dim)`.
        is_integer: boolean. Whether floats are refused: half precision would round them to other
            tokens. Defaults to `False`.

    Raises:
        InvalidInputError: It is no tensor, or the shape or the dtype does not fit.
    """
    if tensor is None:
        return
    check_tensor(name, tensor)
    received, expected = tuple(tensor.shape), tuple(inputs.shape[:-1])
    if not is_shape(received, expected):
        raise InvalidInputError(
            f"`{name}` must have one entry for each token, that is for inputs of shape "
            f"{tuple(inputs.shape)} the shape {expected}, received {received}."
        )
    if is_integer:
        check_integer_tensor(name, tensor)


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


def is_shape(received: Shape, expected: Shape) -> bool:
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
