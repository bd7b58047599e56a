"""The score of a hidden key, and checks of mask arguments."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import check_tensor, check_tokens

HIDDEN = -1e30
"""Replaces an attention score in float32 or better, or is added to one.

After the softmax such a key has no weight if any other key is visible. The number is finite, so a
query that sees no key, and its gradient, stay finite too.
"""


def check_mask(mask: Any, inputs: Any) -> None:
    """Raises an error if a padding mask is not boolean, or does not match the inputs.

    Inputs are `(batch_size, ..., dim)`, the mask has this shape without the last axis. `None`
    passes.
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
    """Returns the padding mask (BT), or a mask of ones for the inputs (BTD) if it is `None`."""
    return ops.ones(ops.shape(inputs)[:2], "bool") if mask is None else mask


def check_attention_mask(attention_mask: Any, queries: Any, keys: Any) -> None:
    """Raises an error if an attention mask is not boolean, or does not fit queries and keys.

    It must broadcast to `(batch_size, query_length, key_length)`. `None` passes.
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
