"""Keras's `TimeDistributed`, as it is meant to be, in graphs whose length is free."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.lent_attributes import lent_attributes


@contextlib.contextmanager
def mended_time_distributed() -> Iterator[None]:
    """Has `TimeDistributed` apply its layer to all steps at once, as rows of one batch.

    Where the length is free, Keras applies it to as many steps as there are rows on TensorFlow, and
    fails on JAX. What is computed of a step does not depend on others, so this gives the same.
    """
    with lent_attributes(keras.layers.TimeDistributed, call=_call):
        yield


def _call(
    self: keras.layers.TimeDistributed, inputs: Any, training: bool | None = None, mask: Any = None
) -> Any:
    arguments: dict[str, Any] = {}
    if self.layer._call_has_mask_arg and mask is not None:
        arguments["mask"] = _join(mask)
    if self.layer._call_has_training_arg:
        arguments["training"] = training
    outputs = self.layer.call(_join(inputs), **arguments)
    num_rows, length, *_ = ops.shape(inputs)
    return ops.reshape(outputs, (num_rows, length, *ops.shape(outputs)[1:]))


def _join(x: Any) -> Any:
    """Returns rows and steps as one axis."""
    num_rows, length, *sizes = ops.shape(x)
    return ops.reshape(x, (num_rows * length, *sizes))
