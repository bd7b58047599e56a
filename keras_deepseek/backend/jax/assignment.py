"""From arrays in a file to variables, on JAX."""

from typing import Any

import jax
import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.array_pieces import cut_pieces


def assign_array(variable: keras.Variable, source: Any) -> None:
    """Copies an array, or what is read like one by its indices, into a variable by pieces."""
    shape, dtype, sharding = tuple(variable.shape), variable.value.dtype, variable.value.sharding
    if len(sharding.device_set) > 1:
        value = jax.make_array_from_callback(
            shape, sharding, lambda index: np.array(source[index], dtype)
        )
    else:
        value = jax.device_put(_read(source, shape, dtype), sharding)
    variable.assign(value)


def _read(source: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns a copy: on a CPU, JAX goes on using the memory that it is given."""
    values = np.empty(shape, dtype)
    for index in cut_pieces(shape, values.itemsize):
        values[index] = source[index]
    return values
