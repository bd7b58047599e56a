"""From arrays in a file to variables, on JAX."""

from typing import Any

import jax
import keras
import numpy as np

from keras_deepseek.backend.array_pieces import read_pieces


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
    else:  # On a CPU, JAX goes on using this memory.
        value = jax.device_put(read_pieces(source, shape, dtype), sharding)
    variable.assign(value)


def unset_initializer() -> Any:
    """Returns the initializer of a variable that is filled before it is read."""
    return "zeros"
