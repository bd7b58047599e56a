"""Gradients of a function by TensorFlow's tape."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.keras_training import recomputed_call


def compute_gradients(
    function: Callable[..., Any], inputs: Sequence[Array], variables: Sequence[keras.Variable]
) -> tuple[list[Array], list[Array]]:
    """Returns the gradients of the scalar `function(*inputs)`, by input and by variable."""
    tensors = [tf.convert_to_tensor(array) for array in inputs]
    sources = [*tensors, *(variable.value for variable in variables)]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        result = function(*tensors)
    gradients = tape.gradient(result, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    # The gradient of an embedding table is sparse until it is converted.
    arrays = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]
    return arrays[: len(tensors)], arrays[len(tensors) :]


def differentiate(
    compute: Callable[[], tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
) -> tuple[Any, Callable[..., list[Any]]]:
    """Returns what `compute` returns beside a scalar, and the scalar's backward pass."""
    sources = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        scalar, others = compute()

    def backward(
        factor: Any = None, receive: Callable[[int, Any], None] | None = None
    ) -> list[Any]:
        upstream = None if factor is None else tf.cast(factor, scalar.dtype)
        gradients: list[Any] = tape.gradient(scalar, sources, upstream)
        return gradients

    return others, backward


def rematerialize(
    layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
) -> Callable[..., Any]:
    """Returns a layer's `call` that keeps nothing for the gradient, and computes it anew there."""
    return recomputed_call(
        layer, call, states, lambda compute, floats: tf.recompute_grad(compute)(*floats)
    )


def apply_with_gradient(
    function: Callable[..., Any],
    gradient: Callable[..., Sequence[Any]],
    tensors: Sequence[Any],
    constants: Sequence[Any],
) -> Any:
    """Returns `function(*tensors, *constants)`; `gradient` says what its gradients are."""

    @tf.custom_gradient
    def run(*arguments: Any) -> Any:
        def differentiate(upstream: Any) -> list[Any]:
            return [*gradient(upstream, *arguments), *(None for _ in constants)]

        # Else the tape keeps all that is computed here, where it runs eagerly.
        return function(*(tf.stop_gradient(argument) for argument in arguments)), differentiate

    return run(*tensors, *constants)
