"""The devices of PyTorch, and layers of one model on several of them.

Keras's operations move their tensors to the device that Keras computes on. Inside `compute_on`,
PyTorch's own operations find their inputs there as well. Autograd moves gradients back.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import torch

from keras_deepseek.backend.keras_private.masks import map_with_masks
from keras_deepseek.backend.keras_private.variables import keras_torch_device, raw_value
from keras_deepseek.backend.protocols.devices import Devices


class TorchDevices(Devices):
    """Implements `Devices` by PyTorch."""

    def count_devices(self, kind: str) -> int:
        if kind == "gpu":
            return int(torch.cuda.device_count())
        return 1 if kind == "cpu" else 0

    def on_device(self, device: str) -> AbstractContextManager[object]:
        # PyTorch distinguishes "cpu" from "cpu:0", and each operation would copy.
        context: AbstractContextManager[object] = keras.device(
            "cpu" if device == "cpu:0" else device
        )
        return context

    def on_device_of(self, tensor: Any) -> AbstractContextManager[object]:
        if _lies_on(tensor, torch.device(keras_torch_device())):
            return contextlib.nullcontext()
        return self.on_device(str(tensor.device))

    def read_device_memory(self) -> dict[str, int] | None:
        if not torch.cuda.is_available():
            return None
        return {
            "in_use": int(torch.cuda.memory_allocated()),
            "peak": int(torch.cuda.max_memory_allocated()),
            "limit": int(
                torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            ),
        }

    def read_device_name(self) -> str | None:
        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None

    def limit_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    def is_out_of_memory(self, error: BaseException) -> bool:
        # On a CPU it is a plain RuntimeError, whose words depend on the system.
        words = ("out of memory", "not enough memory", "can't allocate memory")
        return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError)
            and any(phrase in str(error).lower() for phrase in words)
        )

    def release_memory(self) -> None:
        super().release_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def move_variables(
        self,
        devices: Sequence[tuple[keras.Variable, str]],
        optimizer: keras.optimizers.Optimizer | None,
    ) -> bool:
        is_any_moved = False
        for variable, device in devices:
            value = raw_value(variable)
            if not _lies_on(value, torch_device(device)):
                value.data = value.data.to(torch_device(device))
                is_any_moved = True
        return is_any_moved

    def compute_on(
        self,
        layer: keras.Layer,
        call: Callable[..., Any],
        device: str,
        *,
        is_away: bool,
        comes_back: bool,
    ) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            around = torch.device(keras_torch_device())
            if around.type == "meta":  # Keras infers shapes.
                return call(*args, **kwargs)
            # A layer on the caller's device may get its inputs from another device.
            args, kwargs = _bring((args, kwargs), torch_device(device))
            with self.on_device(device):
                outputs = call(*args, **kwargs)
            return _bring(outputs, around) if comes_back else outputs

        return run


def _bring(structure: Any, device: torch.device) -> Any:
    """Moves the tensors of a nested structure to a device, with their Keras masks."""

    def bring(leaf: Any) -> Any:
        is_local = not isinstance(leaf, torch.Tensor) or _lies_on(leaf, device)
        return leaf if is_local else leaf.to(device)

    return map_with_masks(bring, structure)


def _lies_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Returns True if a tensor is on a device, whose name may lack an index."""
    here = tensor.device
    return here.type == device.type and (here.index or 0) == _index(device)


def _index(device: torch.device) -> int:
    """Returns a device's index, or the current GPU's if it has none."""
    if device.index is None and device.type == "cuda":
        return int(torch.cuda.current_device())
    return device.index or 0


def torch_device(name: str) -> torch.device:
    """Converts a Keras device name to a PyTorch device."""
    return torch.device(name.replace("gpu", "cuda"))
