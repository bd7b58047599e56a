"""The update of variables on JAX, where it is compiled with the step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_deepseek.backend.gradient_scale import multiply_gradients, norm_of_all


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    factor: Any = None,
) -> None:
    """Does what `optimizer.apply` does, in the fastest way that the framework has."""
    optimizer.apply(multiply_gradients(gradients, factor), variables)


def compile_update(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Callable[[Sequence[Any]], None]:
    """Returns a function that updates variables by gradients as `optimizer.apply` does."""
    states = optimizer.variables

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(values: Any, held: Any, gradients: Any) -> Any:
        mapping = [*zip(variables, values, strict=True), *zip(states, held, strict=True)]
        with keras.StatelessScope(mapping) as scope:
            optimizer.apply(gradients, variables)
        return tuple(
            [scope.get_current_value(each) for each in group] for group in (variables, states)
        )

    def update(gradients: Sequence[Any]) -> None:
        groups = run(
            [each.value for each in variables], [each.value for each in states], list(gradients)
        )
        for group, values in zip((variables, states), groups, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    return update


def add_multiples(sums: Sequence[Any], tensors: Sequence[Any], factor: Any) -> list[Any]:
    """Returns sums, into which it may write, and multiples of as many tensors added to them."""
    return [each + factor * tensor for each, tensor in zip(sums, tensors, strict=True)]


def densify(gradient: Any) -> Any:
    """Returns a gradient as one tensor: that of an embedding may be sparse."""
    return gradient


def find_finite(tensors: Sequence[Any]) -> list[bool]:
    """Returns, for each tensor of floats, whether all of its numbers are finite."""
    return [bool(is_finite) for is_finite in _find_finite(list(tensors))]


@jax.jit
def _find_finite(tensors: list[jax.Array]) -> list[jax.Array]:
    # One program: devices that share threads may wait for ever for each other between many.
    return [jnp.all(jnp.isfinite(tensor)) for tensor in tensors]


def global_norm(gradients: Sequence[Any]) -> Any:
    """Returns the norm of all gradients together, a float32 scalar."""
    return norm_of_all(gradients)
