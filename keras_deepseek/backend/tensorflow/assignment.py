"""From arrays in a file to variables, on TensorFlow."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.array_pieces import cut_pieces


def assign_array(variable: keras.Variable, source: Any) -> None:
    """Copies an array, or what is read like one by its indices, into a variable by pieces."""
    target, dtype = variable.value, tf.as_dtype(variable.dtype)
    pieces = list(cut_pieces(tuple(target.shape), dtype.size))
    # A variable that a strategy mirrors takes all of it at once.
    if len(pieces) == 1 or isinstance(target, tf.distribute.DistributedValues):
        variable.assign(np.array(np.asarray(source), dtype.as_numpy_dtype))
        return
    for index in pieces:
        # A copy, since TensorFlow may go on using the memory that it is given.
        _assign_rows(target, index, np.array(source[index], dtype.as_numpy_dtype))


def _assign_rows(target: tf.Variable, index: slice, rows: Array) -> None:
    """Writes in place. `target[index].assign` reads all of it first, and keeps that in a cycle."""
    tf.raw_ops.ResourceStridedSliceAssign(
        ref=target.handle,
        begin=[index.start],
        end=[index.stop],
        strides=[1],
        value=rows,
    )
