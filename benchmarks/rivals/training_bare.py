"""The bare compiled step around a Keras model, by backend: forward, backward, clip and update."""

from collections.abc import Callable
from typing import Any

import keras

Step = Callable[[Any, Any], Any]


def make_step(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
    """Returns a function of inputs and targets that trains the model and returns the loss.

    Args:
        model: `keras.Model`, compiled with a loss.
        optimizer: Keras optimizer, built. On torch its numbers are those of torch's own AdamW.
    """
    backend = keras.backend.backend()
    return {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[backend](model, optimizer)


def _jax(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
    import jax

    def compute(weights: Any, fixed: Any, x: Any, y: Any) -> Any:
        outputs, fixed = model.stateless_call(weights, fixed, x, training=True)
        return model.loss(y, outputs), fixed

    def step(weights: Any, fixed: Any, slots: Any, x: Any, y: Any) -> Any:
        (value, fixed), gradients = jax.value_and_grad(compute, has_aux=True)(weights, fixed, x, y)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return value, weights, fixed, slots

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = [[jax.numpy.array(variable.value) for variable in group] for group in groups]

    def run(x: Any, y: Any) -> Any:
        value, *state[:] = compiled(*state, x, y)
        return value

    return run


def _tensorflow(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
    import tensorflow as tf

    model.compile(optimizer, model.loss)
    variables = model.trainable_variables

    @tf.function(jit_compile=model.jit_compile, reduce_retracing=True)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = model.loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, [variable.value for variable in variables]), variables)
        return value

    def run(x: Any, y: Any) -> Any:
        return step({name: tf.constant(array) for name, array in x.items()}, tf.constant(y))

    return run


def _torch(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
    import torch

    weights = list(model.parameters())
    updater = torch.optim.AdamW(
        weights,
        float(optimizer.learning_rate),
        weight_decay=optimizer.weight_decay,
        eps=optimizer.epsilon,
        fused=True,
    )

    def run(x: Any, y: Any) -> Any:
        updater.zero_grad()
        value = model.loss(y, model(x, training=True))
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, optimizer.global_clipnorm)
        updater.step()
        return value.detach()

    return run
