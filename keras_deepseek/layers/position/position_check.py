"""Checks of token positions."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError


def check_length(name: str, max_length: int | None, length: int | None, start_index: Any) -> None:
    """Raises an error if a call has positions at or beyond the `max_length` of a layer.

    `start_index` is the position of the first token. A `length` of `None` is unknown.
    """
    if max_length is None or length is None:
        return
    start = backend.current().compute.read_integer(start_index) or 0
    if start + length > max_length:
        raise InvalidInputError(
            f"{name!r} has a `max_length` of {max_length} positions, received "
            f"{length} tokens from position {start}. Shorten the sequence, or raise "
            f"`max_length` and set a `scaling` for longer sequences."
        )


def check_no_theta(arguments: Mapping[str, Any], name: str) -> None:
    """Raises an error if a layer got the unknown argument `rope_theta`, and names the right one.

    `name` is the layer's own name of the base of the angles.
    """
    if "rope_theta" in arguments:
        raise InvalidInputError(
            f"`rope_theta`, the base of the rotary angles, is `{name}` here: pass "
            f"{name}={arguments['rope_theta']!r}."
        )


def check_start(start_index: Any) -> None:
    """Raises an error if `start_index` is neither an integer from 0 nor such a scalar tensor."""
    if hasattr(start_index, "dtype") and hasattr(start_index, "shape"):
        dtype = keras.backend.standardize_dtype(start_index.dtype)
        shape = tuple(start_index.shape)  # TensorFlow's empty `TensorShape` is true.
        fits, received = "int" in dtype and not shape, f"{dtype} of shape {shape}"
    else:
        fits = isinstance(start_index, int) and not isinstance(start_index, bool)
        received = repr(start_index)
    if not fits or (backend.current().compute.read_integer(start_index) or 0) < 0:
        raise InvalidInputError(
            "`start_index` must be an integer of at least 0, or an integer scalar tensor, received "
            f"{received}."
        )


def check_positions(positions: Any, inputs: Any) -> None:
    """Raises an error if positions are not integers, one for each token of the inputs.

    The shape is `(batch_size, length)` or `(1, length)`.
    """
    batch_size, length = inputs.shape[:2]
    dtype, shape = keras.backend.standardize_dtype(positions.dtype), tuple(positions.shape)
    allowed = [(None, 1, batch_size), (None, length)]
    fits = len(shape) == len(allowed) and all(
        size in sizes or sizes[-1] is None for size, sizes in zip(shape, allowed, strict=True)
    )
    if not fits or "int" not in dtype:
        raise InvalidInputError(
            f"`positions` must be integers of shape (batch_size, length), for these inputs "
            f"{(batch_size, length)}, received {dtype} of shape {shape}."
        )
