"""A fix of Keras's `ops.batch_normalization` on symbols."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops
from keras.src.ops.nn import BatchNorm

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


@contextlib.contextmanager
def fixed_batch_norm() -> Iterator[None]:
    """Context manager in which `ops.batch_normalization` takes symbols without a scale.

    Keras 3.15 fails on those with an offset. A scale of ones computes the same bits.
    """
    with temporary_attributes(BatchNorm, symbolic_call=_symbolic_call):
        yield


def _symbolic_call(
    self: BatchNorm, x: Any, mean: Any, variance: Any, offset: Any = None, scale: Any = None
) -> Any:
    if scale is None:
        scale = ops.ones(mean.shape, mean.dtype)
    return keras.Operation.symbolic_call(self, x, mean, variance, offset, scale)
