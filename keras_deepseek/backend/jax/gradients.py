"""Gradients of a function by JAX's transformation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array


def compute_gradients(
    function: Callable[..., Any], inputs: Sequence[Array], variables: Sequence[keras.Variable]
) -> tuple[list[Array], list[Array]]:
    """Returns the gradients of the scalar `function(*inputs)`, by input and by variable."""

    def run(tensors: list[jax.Array], values: list[jax.Array]) -> jax.Array:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            result: jax.Array = function(*tensors)
        return result

    tensors = [keras.ops.convert_to_tensor(array) for array in inputs]
    values = [variable.value for variable in variables]
    # One compilation: without it JAX compiles each operation of the gradient by itself.
    by_input, by_variable = jax.jit(jax.grad(run, argnums=(0, 1)))(tensors, values)
    return [np.asarray(array) for array in by_input], [np.asarray(array) for array in by_variable]
