"""The devices of a framework: their number, memory and errors, and layers that run on one."""

import abc
import contextlib
import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek.backend import framework_name
from keras_deepseek.errors import NotSupportedError


class Devices(abc.ABC):
    """The interface to the devices that a framework computes on."""

    @abc.abstractmethod
    def count_devices(self, kind: str) -> int:
        """Returns the number of devices of a kind: `"cpu"`, `"gpu"` or `"tpu"`."""

    def on_device(self, device: str) -> AbstractContextManager[object]:
        """Returns a context manager in which Keras creates variables and computes on a device."""
        context: AbstractContextManager[object] = keras.device(device)
        return context

    def on_device_of(self, tensor: Any) -> AbstractContextManager[object]:
        """Returns a context manager in which Keras computes on the device that holds a tensor."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def read_device_memory(self) -> dict[str, int] | None:
        """Returns the bytes of accelerator memory that are in use, at their peak, and the limit.

        `None` on a CPU, whose allocator counts nothing.
        """

    @abc.abstractmethod
    def read_device_name(self) -> str | None:
        """Returns the maker's name of the accelerator, or `None` on a CPU."""

    @abc.abstractmethod
    def is_out_of_memory(self, error: BaseException) -> bool:
        """Returns True if an error means that a device or the host ran out of memory."""

    @abc.abstractmethod
    def limit_threads(self, threads: int) -> None:
        """Limits the CPU threads that compute an operation, for this process.

        Call it before the framework computes anything: TensorFlow raises `NotSupportedError` later,
        and JAX ignores it.
        """

    def release_memory(self) -> None:
        """Frees the memory of unused tensors, and the framework's reserved memory if possible."""
        gc.collect()

    def move_variables(
        self,
        devices: Sequence[tuple[keras.Variable, str]],
        optimizer: keras.optimizers.Optimizer | None,
    ) -> bool:
        """Moves variables to devices; returns True if any of them was on another device before.

        Raises `NotSupportedError` if the framework can't train one model on several devices by
        layers. `optimizer` is the one that updates the variables, or `None`.
        """
        raise _no_layer_devices()

    def compute_on(
        self,
        layer: keras.Layer,
        call: Callable[..., Any],
        device: str,
        *,
        is_away: bool,
        comes_back: bool,
    ) -> Callable[..., Any]:
        """Returns a layer's `call` that computes its outputs and its gradient on another device.

        `is_away` tells that the caller computes on another device. `comes_back` moves the outputs
        back to it.
        """
        raise _no_layer_devices()


def _no_layer_devices() -> NotSupportedError:
    return NotSupportedError(
        f"device_map assigns layers to devices, but one {framework_name()} program runs on all of "
        "its devices. "
        "Divide the weights among them by distributed_strategy="
        "keras.distribution.ModelParallel(...), with the layouts of "
        "keras_deepseek.training.transformer_layout_map or your own; or train on TensorFlow or "
        "PyTorch."
    )
