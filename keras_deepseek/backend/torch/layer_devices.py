"""Layers of one model on several devices.

Keras's operations bring their tensors to the device that Keras computes on; what a layer does by
PyTorch's own finds them there as well. Autograd goes back the way that the tensors have come.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import torch
from keras.src.backend.torch.core import get_device

from keras_deepseek.backend.keras_private.keras_training import map_with_masks
from keras_deepseek.backend.torch.device import on_device


def move_variables(
    devices: Sequence[tuple[keras.Variable, str]], optimizer: keras.optimizers.Optimizer | None
) -> bool:
    """Moves variables, each to its device as in `"gpu:0"`; returns whether any was on another."""
    is_any_moved = False
    for variable, device in devices:
        value = variable._value
        if not _lies_on(value, _torch_device(device)):
            value.data = value.data.to(_torch_device(device))
            is_any_moved = True
    return is_any_moved


def compute_on(
    layer: keras.Layer,
    call: Callable[..., Any],
    device: str,
    *,
    is_away: bool,
    comes_back: bool,
) -> Callable[..., Any]:
    """Returns a layer's `call` that computes on a device, its gradient as well."""

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:
        around = torch.device(get_device())
        if around.type == "meta":  # Keras asks for shapes.
            return call(*args, **kwargs)
        # What is not away gets its inputs from layers that are.
        args, kwargs = _bring((args, kwargs), _torch_device(device))
        with on_device(device):
            outputs = call(*args, **kwargs)
        return _bring(outputs, around) if comes_back else outputs

    return run


def beside(tensor: Any) -> AbstractContextManager[object]:
    """Returns a context in which Keras computes on the device that a tensor lies on."""
    if _lies_on(tensor, torch.device(get_device())):
        return contextlib.nullcontext()
    return on_device(str(tensor.device))


def _bring(structure: Any, device: torch.device) -> Any:
    """Returns a structure whose tensors are on a device, with the masks that Keras has put on."""

    def bring(leaf: Any) -> Any:
        is_there = not isinstance(leaf, torch.Tensor) or _lies_on(leaf, device)
        return leaf if is_there else leaf.to(device)

    return map_with_masks(bring, structure)


def _lies_on(tensor: torch.Tensor, device: torch.device) -> bool:
    """Whether a tensor is on a device, which may have no index where there is one of its kind."""
    here = tensor.device
    return here.type == device.type and (here.index or 0) == _index(device)


def _index(device: torch.device) -> int:
    if device.index is None and device.type == "cuda":
        return int(torch.cuda.current_device())
    return device.index or 0


def _torch_device(name: str) -> torch.device:
    """Returns a device by the name that Keras has for it."""
    return torch.device(name.replace("gpu", "cuda"))
