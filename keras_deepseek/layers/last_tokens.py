"""Slices of the last tokens of a sequence, for outputs that only those need."""

from typing import Any

from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.layers.input_check import Shape


def take_last(tensor: Any, number: int | None) -> Any:
    """Returns the slice of a tensor for the last `number` tokens; all of it if it broadcasts.

    The tensor is `(batch_size, length, ...)`, with a length of 1 if it broadcasts, or `None`. A
    `number` of `None` takes all tokens.
    """
    if number is None or tensor is None:
        return tensor
    return tensor[:, -check_integer("num_outputs", number) :]


def start_of_last(tokens: Any, start: Any, number: int | None) -> Any:
    """Returns the cache slot of the first of the last `number` tokens.

    Tokens are `(batch_size, length, ...)`. `start` is the slot of the first of all tokens. A
    `number` of `None` takes all.
    """
    if number is None:
        return start
    return start + (ops.shape(tokens)[1] - ops.shape(take_last(tokens, number))[1])


def shape_of_last(shape: Shape, number: int | None) -> Shape:
    """Returns an output shape reduced to the last `number` tokens; `None` keeps all tokens."""
    if number is None:
        return tuple(shape)
    number, length = check_integer("num_outputs", number), shape[1]
    return (shape[0], length if length is None else min(length, number), *shape[2:])
