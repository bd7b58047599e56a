"""A fix of Keras's `TimeDistributed` for graphs with a sequence axis of any length."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


@contextlib.contextmanager
def fixed_time_distributed() -> Iterator[None]:
    """Context manager in which `TimeDistributed` applies its layer to all steps at once.

    For a free length, Keras applies it to as many steps as there are rows on TensorFlow, and fails
    on JAX. Steps don't depend on each other, so the result is the same.
    """
    with temporary_attributes(keras.layers.TimeDistributed, call=_call):
        yield


def _call(
    self: keras.layers.TimeDistributed, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    """Applies `TimeDistributed`'s inner layer to all time steps as rows of one batch."""
    arguments: dict[str, Any] = {}
    if self.layer._call_has_mask_arg and mask is not None:
        arguments["mask"] = _join(mask)
    if self.layer._call_has_training_arg:
        arguments["training"] = training
    outputs = self.layer.call(_join(inputs), **arguments)
    num_rows, length, *_ = ops.shape(inputs)
    return ops.reshape(outputs, (num_rows, length, *ops.shape(outputs)[1:]))


def _join(x: Any) -> Any:
    """Merges the batch axis and the time axis of a tensor."""
    num_rows, length, *sizes = ops.shape(x)
    return ops.reshape(x, (num_rows * length, *sizes))
