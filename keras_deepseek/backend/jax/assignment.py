"""From arrays in a file to variables, on JAX."""

import math
from typing import Any

import jax
import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.array_pieces import cut_pieces

_ALIGNMENT = 64  # Bytes.


def assign_array(variable: keras.Variable, source: Any) -> None:
    """Copies an array, or what is read like one by its indices, into a variable by pieces.

    The array that the variable held is deleted first, so that the two never stand side by side.
    """
    shape, dtype, sharding = tuple(variable.shape), variable.value.dtype, variable.value.sharding
    variable.value.delete()
    if len(sharding.device_set) > 1:
        value = jax.make_array_from_callback(
            shape, sharding, lambda index: np.array(source[index], dtype)
        )
    else:
        value = jax.device_put(_read(source, shape, dtype), sharding)
    variable.assign(value)


def _read(source: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns a copy, aligned as XLA asks: on a CPU, JAX goes on using its memory."""
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, "u1")
    begin = -memory.ctypes.data % _ALIGNMENT
    values: Array = memory[begin : begin + num_bytes].view(dtype).reshape(shape)
    for index in cut_pieces(shape, dtype.itemsize):
        values[index] = source[index]
    return values
