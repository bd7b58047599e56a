"""The slot or position of a call's first token: one for all sequences of a batch, or one each.

It is an integer, an integer scalar tensor, or an integer tensor of shape `(batch_size,)`.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError


def is_start(value: Any, batch_size: int | None) -> bool:
    """Returns True for an integer or integer scalar tensor, or an integer for each sequence.

    A `batch_size` of `None` is unknown. The values of tensors are not read.
    """
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        return isinstance(value, int) and not isinstance(value, bool)
    shape = tuple(value.shape)  # TensorFlow's empty `TensorShape` is true.
    is_integer = "int" in keras.backend.standardize_dtype(value.dtype)
    sizes = (None, batch_size) if batch_size is not None else (None, *shape)
    return is_integer and (not shape or (len(shape) == 1 and shape[0] in sizes))


def is_by_row(start: Any) -> bool:
    """Returns True if each sequence has a start of its own."""
    return bool(tuple(getattr(start, "shape", ())))


def by_row(start: Any) -> Any:
    """Returns the start as an int32 tensor `(batch_size, 1)`, or `(1, 1)` if it is one for all."""
    return ops.reshape(ops.cast(start, "int32"), (-1, 1))


def read_starts(start: Any) -> Array | None:
    """Returns the start of each sequence, or of all, as an array of one axis; `None` if unknown.

    The values of a tensor are not known while it is traced. Those of a tensor with one start for
    each sequence are not read from an accelerator either, since a step would have to wait for them.
    """
    if isinstance(start, np.ndarray):
        return np.atleast_1d(start)
    if isinstance(start, keras.KerasTensor):
        return None
    compute = backend.current().compute
    if is_by_row(start):
        return compute.read_array(start)
    number = compute.read_integer(start)
    return None if number is None else np.asarray([number])


def all_start_at_zero(start: Any) -> bool:
    """Returns True if all sequences are known to start at 0."""
    starts = read_starts(start)
    return starts is not None and not starts.any()


def check_start(start_index: Any, batch_size: int | None) -> None:
    """Raises an error if `start_index` is no integer from 0 on, and no such tensor."""
    fits = is_start(start_index, batch_size)
    starts = read_starts(start_index) if fits else None
    if not fits or (starts is not None and (starts < 0).any()):
        raise InvalidInputError(
            f"`start_index` must be an integer of at least 0, or an integer tensor, scalar or of "
            f"shape (batch_size,), here ({batch_size},); received {describe_start(start_index)}."
        )


def describe_start(start: Any) -> str:
    """Returns what a message says of a start: its dtype and shape, or its value."""
    if not (hasattr(start, "dtype") and hasattr(start, "shape")):
        return repr(start)
    dtype, shape = keras.backend.standardize_dtype(start.dtype), tuple(start.shape)
    return f"{dtype} of shape {shape}"


def check_length(name: str, max_length: int | None, length: int | None, start_index: Any) -> None:
    """Raises an error if a call has positions at or beyond the `max_length` of a layer.

    `start_index` is the position of the first token. A `length` of `None` is unknown.
    """
    if max_length is None or length is None:
        return
    starts = read_starts(start_index)
    start = 0 if starts is None else int(starts.max(initial=0))
    if start + length > max_length:
        raise InvalidInputError(
            f"{name!r} has a `max_length` of {max_length} positions, received "
            f"{length} tokens from position {start}. Shorten the sequence, or raise "
            f"`max_length` and set a `scaling` for longer sequences."
        )
