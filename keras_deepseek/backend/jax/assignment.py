"""From arrays in a file to variables, on JAX."""

from typing import Any

import jax
import keras
import numpy as np

from keras_deepseek.backend.data.array_pieces import allocate_aligned, read_pieces


def assign_array(variable: keras.Variable, source: Any) -> None:
    """Copies an array, or what is read like one by its indices, into a variable by pieces.

    The array that the variable held is deleted first, so that the two never stand side by side.
    """
    dtype, sharding = variable.value.dtype, variable.value.sharding
    variable.value.delete()
    if len(sharding.device_set) > 1:
        value = jax.make_array_from_callback(
            tuple(variable.shape), sharding, lambda index: read_pieces(source[index], dtype)
        )
    else:  # On a CPU, JAX goes on using this memory.
        value = jax.device_put(read_pieces(source, dtype), sharding)
    variable.assign(value)


def unset_initializer() -> Any:
    """Returns the initializer of a variable that is filled before it is read.

    JAX writes its own zeros one by one; of these a machine gives memory to none.
    """
    return "zeros" if keras.distribution.distribution() else _make_untouched_zeros


def _make_untouched_zeros(shape: Any, dtype: Any = None) -> jax.Array:
    return jax.device_put(allocate_aligned(tuple(shape), np.dtype(dtype)))
