"""The checks that masks go through in layers that take them as arguments."""

from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError


def check_mask(mask: Any, inputs: Any) -> None:
    """Raises an error where a mask is not one of the inputs.

    Args:
        mask: Tensor or `None`, which fits always.
        inputs: Tensor of shape `(batch_size, length, ...)`.

    Raises:
        InvalidInputError: The mask has another shape than `(batch_size, length)`.
    """
    if mask is None:
        return
    received, expected = tuple(mask.shape), tuple(inputs.shape[:2])
    fits = len(received) == len(expected) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(received, expected, strict=True)
    )
    if not fits:
        raise InvalidInputError(
            f"`mask` must be of shape (batch_size, length), for these inputs {expected}, received "
            f"{received}."
        )


def check_attention_mask(attention_mask: Any, queries: Any, keys: Any) -> None:
    """Raises an error where a mask does not say which keys each query may look at.

    Args:
        attention_mask: Tensor or `None`, which fits always.
        queries: Tensor of shape `(batch_size, query_length, ...)`.
        keys: Tensor of shape `(batch_size, key_length, ...)`.

    Raises:
        InvalidInputError: The mask is not boolean, or does not broadcast to `(batch_size,
            query_length, key_length)`.
    """
    if attention_mask is None:
        return
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
