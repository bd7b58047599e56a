"""Loops whose runs wait for each other, and what is done only on a condition."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_deepseek.backend.gradient_free import is_gradient_free
from keras_deepseek.backend.keras_private.keras_training import NestedScope


def repeat(
    body: Callable[..., Sequence[Any]],
    times: Any,
    state: Sequence[Any],
    variables: Sequence[keras.Variable] = (),
) -> tuple[Any, ...]:
    """Returns the tensors that `state = body(index, *state)` makes, one run after the other."""

    def run(index: Any, carried: Any) -> Any:
        state, values = carried
        with NestedScope(zip(variables, values, strict=True)) as scope:
            state = tuple(body(index, *state))
        return state, [scope.get_current_value(variable) for variable in variables]

    carried = tuple(state), [variable.value for variable in variables]
    final, values = jax.lax.fori_loop(0, times, run, carried)
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return tuple(final)


def loops_over_blocks() -> bool:
    """Whether `stack` may be used, and is faster than one operation on all blocks at once."""
    return is_gradient_free() and jax.default_backend() == "cpu"


def stack(function: Callable[[Any], Any], count: Any, number: Any) -> Any:
    """Returns what `function(index)` makes for indices below `count`, zeros up to `number`."""

    def put(index: Any, stacked: Any) -> Any:
        return jax.lax.dynamic_update_index_in_dim(stacked, function(index), index, 0)

    made = jax.eval_shape(function, 0)
    return jax.lax.fori_loop(0, count, put, jnp.zeros((number, *made.shape), made.dtype))


def run_if(
    condition: Any, function: Callable[[], None], variables: Sequence[keras.Variable]
) -> None:
    """Runs a function that assigns variables, where a boolean scalar is true."""
    values = [variable.value for variable in variables]

    def run() -> list[jax.Array]:
        with NestedScope(zip(variables, values, strict=True)) as scope:
            function()
        return [scope.get_current_value(variable) for variable in variables]

    results = jax.lax.cond(condition, run, lambda: values)
    for variable, value in zip(variables, results, strict=True):
        variable.assign(value)
