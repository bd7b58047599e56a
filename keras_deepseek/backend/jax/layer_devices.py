"""Layers of one model on several devices, which JAX does by layouts of one program instead."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import keras

from keras_deepseek.errors import NotSupportedError


def move_variables(
    devices: Sequence[tuple[keras.Variable, str]], optimizer: keras.optimizers.Optimizer | None
) -> bool:
    """Moves variables, each to its device as in `"gpu:0"`; returns whether any was on another."""
    _refuse()


def compute_on(
    layer: keras.Layer,
    call: Callable[..., Any],
    device: str,
    *,
    is_away: bool,
    comes_back: bool,
) -> Callable[..., Any]:
    """Returns a layer's `call` that computes on a device, its gradient as well."""
    _refuse()


def beside(tensor: Any) -> AbstractContextManager[object]:
    """Returns a context in which Keras computes on the device that a tensor lies on."""
    return contextlib.nullcontext()  # One program, and its layouts, say where.


def _refuse() -> NoReturn:
    raise NotSupportedError(
        "device_map names devices by layers, and one program of JAX runs on all of its devices. "
        "Divide the weights among them by distributed_strategy="
        "keras.distribution.ModelParallel(...), with the layouts of "
        "keras_deepseek.training.transformer_layout_map or your own; or train on TensorFlow or "
        "PyTorch."
    )
