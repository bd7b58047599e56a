"""The devices of TensorFlow, and layers of one model on several of them.

TensorFlow moves tensors to the operations that take them. `tf.device` around a layer's call places
the forward pass only: the tape makes the backward pass later. So a layer on another device has its
own tape, whose gradients are computed on that device.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.keras_private.layer_calls import take_losses
from keras_deepseek.backend.keras_private.masks import split_floats
from keras_deepseek.backend.keras_private.optimizers import find_variables_again
from keras_deepseek.backend.keras_private.variables import raw_value, set_raw_value
from keras_deepseek.backend.protocols.devices import Devices
from keras_deepseek.backend.runtimes.saved_model import limit_threads


class TensorFlowDevices(Devices):
    """Implements `Devices` by TensorFlow."""

    def count_devices(self, kind: str) -> int:
        return len(tf.config.list_logical_devices(kind.upper()))

    def on_device_of(self, tensor: Any) -> AbstractContextManager[object]:
        return tf.device(tensor.device) if tensor.device else contextlib.nullcontext()

    def read_device_memory(self) -> dict[str, int] | None:
        devices = tf.config.list_logical_devices("GPU")
        if not devices:
            return None
        memory = tf.config.experimental.get_memory_info(devices[0].name.removeprefix("/device:"))
        return {"in_use": int(memory["current"]), "peak": int(memory["peak"])}

    def read_device_name(self) -> str | None:
        devices = tf.config.list_physical_devices("GPU")
        if not devices:
            return None
        name = tf.config.experimental.get_device_details(devices[0]).get("device_name")
        return None if name is None else str(name)

    def limit_threads(self, threads: int) -> None:
        limit_threads(threads)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError) or (
            isinstance(error, tf.errors.InternalError) and "out of memory" in str(error).lower()
        )

    def move_variables(
        self,
        devices: Sequence[tuple[keras.Variable, str]],
        optimizer: keras.optimizers.Optimizer | None,
    ) -> bool:
        moved = [
            (variable, device)
            for variable, device in devices
            if not _lies_on(raw_value(variable), device)
        ]
        for variable, device in moved:
            old_value = raw_value(variable)
            with tf.init_scope(), tf.device(device):
                moved_value = tf.Variable(
                    _read_value(old_value),
                    dtype=old_value.dtype,
                    trainable=old_value.trainable,
                    name=variable.name,
                    aggregation=old_value.aggregation,
                    synchronization=old_value.synchronization,
                )
            set_raw_value(variable, moved_value)
        # It indexes them by TensorFlow variables.
        if moved and optimizer is not None and optimizer.built:
            find_variables_again(optimizer)
        return bool(moved)

    def compute_on(
        self,
        layer: keras.Layer,
        call: Callable[..., Any],
        device: str,
        *,
        is_away: bool,
        comes_back: bool,
    ) -> Callable[..., Any]:
        if not is_away:
            return call

        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            floats, put = split_floats((args, kwargs))
            weights = [raw_value(variable) for variable in layer.trainable_variables]
            # `compute` leaves here the function that puts float results back among the others.
            put_results: list[Callable[[Sequence[Any]], Any]] = []

            @tf.custom_gradient
            def compute(*given_floats: Any) -> Any:
                floats = list(map(tf.identity, given_floats))  # The same tensor may be given twice.
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch([*floats, *weights])
                    positional, named = put(floats)
                    results, put_result = split_floats(
                        take_losses(layer, call)(*positional, **named)
                    )
                    put_results.append(put_result)

                def backward(*upstream: Any, variables: Sequence[Any] = ()) -> Any:
                    with tf.device(device):
                        gradients = tape.gradient(
                            results, [*floats, *variables], list(upstream[: len(results)])
                        )
                    float_gradients = gradients[: len(floats)]
                    if not variables:
                        return float_gradients
                    return float_gradients, gradients[len(floats) :]

                # TensorFlow requires a result. Results that are no floats bypass the function.
                return [*results, tf.zeros(())], backward

            with tf.device(device):
                results = compute(*floats)
            outputs, losses = put_results[0](results[:-1])
            for loss in losses:
                layer.add_loss(loss)
            return outputs

        return run


def _read_value(variable: Any) -> Any:
    """Returns a variable's value, or zeros if a step under trace has just created it.

    Such a variable gets its value when the trace ends. It stands beside the slots of a weight, such
    as Adafactor's sums, which begin as zeros.
    """
    if tf.executing_eagerly() and not variable.is_initialized():
        return tf.zeros(variable.shape, variable.dtype)
    return tf.identity(variable)


def _lies_on(variable: tf.Variable, device: str) -> bool:
    """Returns True if a variable is on a device, or is an integer state that stays on a CPU."""
    kind, index = device.split(":")
    device_spec = tf.DeviceSpec.from_string(variable.device)
    if kind != "cpu" and variable.dtype in (tf.int32, tf.uint32):
        return True
    return (device_spec.device_type, device_spec.device_index) == (kind.upper(), int(index))
