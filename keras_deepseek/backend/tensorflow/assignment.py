"""From arrays in a file to variables, on TensorFlow."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.data.array_pieces import allocate_aligned, read_pieces


def assign_array(variable: keras.Variable, source: Any) -> None:
    """Copies an array, or what is read like one by its indices, into a variable by pieces.

    They are read by pieces, and written as a whole: of a variable that was written by slices
    TensorFlow copies all whenever it is read.
    """
    dtype = np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype)
    # The variable goes on using this memory, until it is first updated, by a copy.
    variable.assign(_as_tensor(read_pieces(source, dtype)))


def unset_initializer() -> Any:
    """Returns the initializer of a variable that is filled before it is read.

    TensorFlow's own zeros would take memory, which its allocator keeps when a variable leaves it;
    of these a machine gives memory to none.
    """
    return _make_untouched_zeros


def _make_untouched_zeros(shape: Any, dtype: Any = None) -> tf.Tensor:
    return _as_tensor(allocate_aligned(tuple(shape), np.dtype(tf.as_dtype(dtype).as_numpy_dtype)))


def _as_tensor(values: Array) -> tf.Tensor:
    """Returns a tensor on the memory of an array."""
    if values.dtype.name != "bfloat16":  # NumPy knows no other package's dtypes.
        return tf.experimental.dlpack.from_dlpack(values.__dlpack__())
    numbers = tf.experimental.dlpack.from_dlpack(values.view("int16").__dlpack__())
    return tf.bitcast(numbers, tf.bfloat16)
