"""Gradients of a function by JAX's transformation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax.custom_derivatives import SymbolicZero

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.keras_training import NestedScope, split_floats
from keras_deepseek.backend.loss_means import declare_mean_over, hearing_means


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


def differentiate(
    compute: Callable[[], tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
) -> tuple[Any, Callable[..., list[Any]]]:
    """Returns what `compute` returns beside a scalar, and the scalar's backward pass.

    Its gradients are `None` where the scalar depends on no variable at all.
    """
    kept = [(state, state.value) for state in states]
    tangents: list[bool] = []

    def run(values: list[jax.Array]) -> tuple[jax.Array, Any]:
        with NestedScope([*zip(variables, values, strict=True), *kept]) as scope:
            scalar, others = compute()
        others = others, [scope.get_current_value(state) for state in states]
        return _hear_tangents(scalar, tangents), others

    scalar, pull, (others, values) = jax.vjp(
        run, [variable.value for variable in variables], has_aux=True
    )
    for state, value in zip(states, values, strict=True):
        state.assign(value)

    def backward(
        factor: Any = None, receive: Callable[[int, Any], None] | None = None
    ) -> list[Any]:
        if not any(tangents):
            return [None] * len(variables)
        upstream = jax.numpy.ones_like(scalar)
        if factor is not None:
            upstream = jax.numpy.asarray(factor, scalar.dtype)
        (gradients,) = pull(upstream)
        return list(gradients)

    return others, backward


def _hear_tangents(scalar: Any, heard: list[bool]) -> Any:
    """Returns a scalar, and notes whether it depends on what is differentiated by.

    JAX's gradients don't tell: those by what nothing depends on are zeros.
    """

    @jax.custom_jvp
    def run(scalar: jax.Array) -> jax.Array:
        return scalar

    def run_tangent(primals: Any, tangents: Any) -> Any:
        (primal,), (tangent,) = primals, tangents
        heard.append(not isinstance(tangent, SymbolicZero))
        return primal, tangent

    run.defjvp(run_tangent, symbolic_zeros=True)
    return run(keras.ops.convert_to_tensor(scalar))


def rematerialize(
    layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
) -> Callable[..., Any]:
    """Returns a layer's `call` that keeps nothing for the gradient, and computes it anew there."""

    def run(*args: Any, **kwargs: Any) -> Any:
        floats, put = split_floats((args, kwargs))

        def compute(floats: list[jax.Array], values: list[jax.Array]) -> Any:
            with (
                NestedScope(zip(states, values, strict=True)) as scope,
                hearing_means() as means,
            ):
                given, named = put(floats)
                outputs = call(*given, **named)
            values = [scope.get_current_value(state) for state in states]
            return outputs, values, scope.losses, means

        values = [state.value for state in states]
        outputs, values, losses, means = jax.checkpoint(compute)(floats, values)
        for state, value in zip(states, values, strict=True):
            state.assign(value)
        for loss in losses:
            layer.add_loss(loss)
        for mean in means:
            declare_mean_over(mean)
        return outputs

    return run


def apply_with_gradient(
    function: Callable[..., Any],
    gradient: Callable[..., Sequence[Any]],
    tensors: Sequence[Any],
    constants: Sequence[Any],
) -> Any:
    """Returns `function(*tensors, *constants)`; `gradient` says what its gradients are."""

    @jax.custom_vjp
    def run(tensors: tuple[Any, ...], constants: tuple[Any, ...]) -> Any:
        return function(*tensors, *constants)

    def run_forward(tensors: Any, constants: Any) -> Any:
        return function(*tensors, *constants), (tensors, constants)

    def run_backward(arguments: Any, upstream: Any) -> Any:
        tensors, constants = arguments
        return tuple(gradient(upstream, *tensors, *constants)), None

    run.defvjp(run_forward, run_backward)
    return run(tuple(tensors), tuple(constants))
