"""A function or a layer in its backend's usual compiled form, to be called again and again.

TensorFlow runs in a graph, JAX under jit, torch eagerly as Keras runs it, or under `torch.compile`
where that is asked for. Forward alone is as in a model that is served. With backward means: the
gradients of the sum of squared outputs by all inputs and all trainable variables.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.call_context import without_gradients

Action = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """What competes.

    Args:
        function: What is timed, called with the inputs.
        inputs: Its arguments, tensors or dicts of tensors.
        layers: The layers whose variables it uses.
    """

    function: Callable[..., Any]
    inputs: Sequence[Any]
    layers: Sequence[keras.Layer] = ()

    def variables(self, *, trainable: bool) -> list[keras.Variable]:
        """Returns its variables of one kind."""
        variables = [variable for layer in self.layers for variable in layer.variables]
        return [variable for variable in variables if bool(variable.trainable) == trainable]


def compile_rival(rival: Rival, with_backward: bool, use_torch_compile: bool) -> Action:
    """Returns a function without arguments that runs the rival and waits for its end."""
    backend = keras.backend.backend()
    if backend == "torch":
        return _compile_torch(rival, with_backward, use_torch_compile)
    return {"tensorflow": _compile_tensorflow, "jax": _compile_jax}[backend](rival, with_backward)


def _loss(outputs: Any) -> Any:
    return ops.sum(ops.square(outputs))


def _compile_tensorflow(rival: Rival, with_backward: bool) -> Action:
    import tensorflow as tf

    variables = [variable.value for variable in rival.variables(trainable=True)]

    @tf.function
    def forward(*inputs: Any) -> Any:
        with without_gradients():
            return rival.function(*inputs)

    @tf.function
    def gradients(*inputs: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = _loss(rival.function(*inputs))
        return tape.gradient(loss, [*inputs, *variables])

    function = gradients if with_backward else forward

    def act() -> Any:
        # On the CPU eager calls of a graph return when it is done: nothing is left to wait for.
        return function(*rival.inputs)

    return act


def _compile_jax(rival: Rival, with_backward: bool) -> Action:
    import jax

    trainable, fixed = (rival.variables(trainable=kind) for kind in (True, False))
    values = [[variable.value for variable in kind] for kind in (trainable, fixed)]

    def forward(inputs: Any, weights: Any, fixed_values: Any) -> Any:
        mapping = [*zip(trainable, weights, strict=True), *zip(fixed, fixed_values, strict=True)]
        scope = keras.StatelessScope(state_mapping=mapping)
        with nullcontext() if with_backward else without_gradients(), scope:
            return rival.function(*inputs)

    function: Any = forward
    if with_backward:
        function = jax.grad(lambda *arguments: _loss(forward(*arguments)), argnums=(0, 1))
    function = jax.jit(function)
    return lambda: jax.block_until_ready(function(tuple(rival.inputs), *values))


def _compile_torch(rival: Rival, with_backward: bool, use_torch_compile: bool) -> Action:
    import torch

    torch.set_num_threads(1)
    function = torch.compile(rival.function) if use_torch_compile else rival.function
    variables = [variable.value for variable in rival.variables(trainable=True)]

    def gradients() -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in rival.inputs]
        loss = _loss(function(*leaves))
        return torch.autograd.grad(loss, [*leaves, *variables], allow_unused=True)

    def forward() -> Any:
        with torch.no_grad():
            return function(*rival.inputs)

    return gradients if with_backward else forward
