"""The last tokens of a sequence, which are all that a prompt is read for."""

from typing import Any

from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.layers.input_check import Shape


def take_last(tensor: Any, number: int | None) -> Any:
    """Returns what a tensor says of the last tokens, or as it is where it says one thing for all.

    Args:
        tensor: Tensor of shape `(batch_size, length, ...)`, of a length of 1 where it broadcasts,
            or `None`.
        number: integer. How many tokens; those that there are where they are fewer. `None` is for
            all.

    Raises:
        InvalidInputError: `number` is not a positive integer.
    """
    if number is None or tensor is None:
        return tensor
    return tensor[:, -check_integer("num_outputs", number) :]


def start_of_last(tokens: Any, start: Any, number: int | None) -> Any:
    """Returns the slot of the first of the last tokens.

    Args:
        tokens: Tensor of shape `(batch_size, length, ...)`.
        start: integer or integer scalar tensor. The slot of the first token of all.
        number: integer, or `None` for all.
    """
    if number is None:
        return start
    return start + (ops.shape(tokens)[1] - ops.shape(take_last(tokens, number))[1])


def shape_of_last(shape: Shape, number: int | None) -> Shape:
    """Returns the shape of what is computed of the last tokens.

    Args:
        shape: tuple. That of all, `None` for sizes that are not known.
        number: integer, or `None` for all.

    Raises:
        InvalidInputError: `number` is not a positive integer.
    """
    if number is None:
        return tuple(shape)
    number, length = check_integer("num_outputs", number), shape[1]
    return (shape[0], length if length is None else min(length, number), *shape[2:])
