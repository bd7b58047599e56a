"""Layers of one model on several devices.

TensorFlow brings tensors to the operations that take them. `tf.device` around a layer's call says
where its forward pass runs, and nothing of the backward pass, which a tape makes later: so a layer
that is away has a tape of its own, and its gradients are asked of it on the same device.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.keras_private.keras_training import split_floats, take_losses


def move_variables(
    devices: Sequence[tuple[keras.Variable, str]], optimizer: keras.optimizers.Optimizer | None
) -> bool:
    """Moves variables, each to its device as in `"gpu:0"`; returns whether any was on another."""
    moved = [(each, device) for each, device in devices if not _lies_on(each._value, device)]
    for variable, device in moved:
        before = variable._value
        with tf.init_scope(), tf.device(device):
            variable._value = tf.Variable(
                _read_value(before),
                dtype=before.dtype,
                trainable=before.trainable,
                name=variable.name,
                aggregation=before.aggregation,
                synchronization=before.synchronization,
            )
    if moved and optimizer is not None and optimizer.built:  # It knows them by TensorFlow's.
        optimizer._trainable_variables_indices = {
            optimizer._var_key(variable): index
            for index, variable in enumerate(optimizer._trainable_variables)
        }
    return bool(moved)


def _read_value(variable: Any) -> Any:
    """Returns the value of a variable, zeros of one that a step that is being traced has made.

    It gets its value when the trace has ended. An optimizer makes it, beside those like the weights
    that it makes in their places: Adafactor's sums of rows and columns, which begin as zeros.
    """
    if tf.executing_eagerly() and not variable.is_initialized():
        return tf.zeros(variable.shape, variable.dtype)
    return tf.identity(variable)


def compute_on(
    layer: keras.Layer,
    call: Callable[..., Any],
    device: str,
    *,
    is_away: bool,
    comes_back: bool,
) -> Callable[..., Any]:
    """Returns a layer's `call` that computes on a device, its gradient as well."""
    if not is_away:
        return call

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        floats, put = split_floats((args, kwargs))
        weights = [variable._value for variable in layer.trainable_variables]
        put_results: list[Callable[[Sequence[Any]], Any]] = []

        @tf.custom_gradient
        def compute(*given_floats: Any) -> Any:
            floats = list(map(tf.identity, given_floats))  # One may be given twice.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*floats, *weights])
                given, named = put(floats)
                results, put_result = split_floats(take_losses(layer, call)(*given, **named))
                put_results.append(put_result)

            def backward(*upstream: Any, variables: Sequence[Any] = ()) -> Any:
                with tf.device(device):
                    gradients = tape.gradient(
                        results, [*floats, *variables], list(upstream[: len(results)])
                    )
                by_floats = gradients[: len(floats)]
                return (by_floats, gradients[len(floats) :]) if variables else by_floats

            # TensorFlow takes no function without results; those that are no floats go around.
            return [*results, tf.zeros(())], backward

        with tf.device(device):
            results = compute(*floats)
        outputs, losses = put_results[0](results[:-1])
        for loss in losses:
            layer.add_loss(loss)
        return outputs

    return run


def beside(tensor: Any) -> AbstractContextManager[object]:
    """Returns a context in which Keras computes on the device that a tensor lies on."""
    return tf.device(tensor.device) if tensor.device else contextlib.nullcontext()


def _lies_on(variable: tf.Variable, device: str) -> bool:
    """Whether a variable is on a device, or can't be: counters and seeds stay on the host."""
    kind, index = device.split(":")
    place = tf.DeviceSpec.from_string(variable.device)
    if kind != "cpu" and variable.dtype in (tf.int32, tf.uint32):
        return True
    return (place.device_type, place.device_index) == (kind.upper(), int(index))
