"""Checks of mask arguments."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import check_tensor, check_tokens


def check_mask(mask: Any, inputs: Any) -> None:
    """Raises an error if a mask is not boolean, or does not match the inputs.

    Args:
        mask: Tensor or `None`, which passes.
        inputs: Tensor of shape `(batch_size, ..., dim)`.

    Raises:
        InvalidInputError: The mask is not a boolean tensor of the shape of the inputs without the
            last axis.
    """
    if mask is None:
        return
    check_tokens("mask", mask, inputs)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise InvalidInputError(
            f"`mask` must be boolean, true at real tokens, received {dtype}. Pass `mask != 0`. An "
            f"additive attention mask does not work here."
        )


def complete_mask(mask: Any, inputs: Any) -> Any:
    """Returns the mask, or one of ones if it is `None`.

    Args:
        mask: Tensor of shape `(batch_size, length)`, or `None`.
        inputs: Tensor of shape `(batch_size, length, dim)`.
    """
    return ops.ones(ops.shape(inputs)[:2], "bool") if mask is None else mask


def check_attention_mask(attention_mask: Any, queries: Any, keys: Any) -> None:
    """Raises an error if a mask of keys is not boolean, or does not match the queries and keys.

    Args:
        attention_mask: Tensor or `None`, which passes.
        queries: Tensor of shape `(batch_size, query_length, ...)`.
        keys: Tensor of shape `(batch_size, key_length, ...)`.

    Raises:
        InvalidInputError: The mask is not boolean, or does not broadcast to
            `(batch_size, query_length, key_length)`.
    """
    if attention_mask is None:
        return
    check_tensor("attention_mask", attention_mask)
    received, expected = tuple(attention_mask.shape), (*queries.shape[:2], keys.shape[1])
    dtype = keras.backend.standardize_dtype(attention_mask.dtype)
    fits = len(received) == len(expected) and all(
        None in sizes or sizes[0] in (1, sizes[1]) for sizes in zip(received, expected, strict=True)
    )
    if not fits or dtype != "bool":
        raise InvalidInputError(
            f"`attention_mask` must be boolean and broadcast to (batch_size, length, key_length), "
            f"here {expected}, received {dtype} of shape {received}."
        )
