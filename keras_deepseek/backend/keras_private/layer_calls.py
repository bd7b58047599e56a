"""Calls of layers that are repeated in the backward pass, or marked for a profile."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics

from keras_deepseek.backend.keras_private.masks import split_floats
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


def remember_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a call so that it runs later in the Keras settings of this moment.

    It restores training mode and autocasting; and the device, which differs by thread: PyTorch's
    backward pass has a thread for each GPU.
    """
    state = keras.src.backend.common.global_state
    names = ("current_call_ctx", "autocast_scope", "torch_device")
    remembered = [state.get_global_attribute(name) for name in names]

    def run(*args: Any, **kwargs: Any) -> Any:
        now = [state.get_global_attribute(name) for name in names]
        for name, value in zip(names, remembered, strict=True):
            state.set_global_attribute(name, value)
        try:
            return call(*args, **kwargs)
        finally:
            for name, value in zip(names, now, strict=True):
                state.set_global_attribute(name, value)

    return run


def repeatable(call: Callable[..., Any], states: Sequence[keras.Variable]) -> Callable[..., Any]:
    """Returns a function whose second call returns the same result and assigns nothing.

    `states` are the variables that the first call assigns, such as the seed of a dropout.
    """
    first: list[Any] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        now = [keras.ops.copy(state.value) for state in states]
        if not first:
            first.append(now)
            return call(*args, **kwargs)
        for state, value in zip(states, first[0], strict=True):
            state.assign(value)
        try:
            return call(*args, **kwargs)
        finally:
            for state, value in zip(states, now, strict=True):
                state.assign(value)

    return run


def take_losses(layer: keras.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a call so that it returns its outputs and its added losses, and removes the losses."""

    def run(*args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        layers = layer._flatten_layers()
        layer_losses = [(inner, list(inner._losses)) for inner in layers]
        outputs = call(*args, **kwargs)
        losses = [
            loss for inner, old_losses in layer_losses for loss in inner._losses[len(old_losses) :]
        ]
        for inner, old_losses in layer_losses:
            inner._losses = old_losses
        return outputs, losses

    return run


def recomputed_call(
    layer: keras.Layer,
    call: Callable[..., Any],
    states: Sequence[keras.Variable],
    checkpoint: Callable[[Callable[..., Any], Sequence[Any]], Any],
) -> Callable[..., Any]:
    """Returns a layer's `call` that a framework may repeat for the gradient.

    The second call leaves `states` alone. `checkpoint` takes a function and its tensors, and
    returns a result that the framework can compute again.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        floats, put = split_floats((args, kwargs))
        again = remember_call(take_losses(layer, repeatable(call, states)))

        def compute(*floats: Any) -> Any:
            positional, named = put(floats)
            return again(*positional, **named)

        outputs, losses = checkpoint(compute, floats)
        for loss in losses:
            layer.add_loss(loss)
        return outputs

    return run


@contextlib.contextmanager
def profiled_calls(
    mark_layer: Callable[[keras.Layer], AbstractContextManager[object]],
    mark_loss: Callable[[], AbstractContextManager[object]],
    mark_update: Callable[[], AbstractContextManager[object]],
) -> Iterator[None]:
    """Context manager in which each call of a layer, a loss or an optimizer is marked."""
    wrapped: list[tuple[type, str, Callable[[Any], AbstractContextManager[object]]]] = [
        (keras.Layer, "__call__", mark_layer),
        (keras.losses.Loss, "__call__", lambda _: mark_loss()),
        (CompileLoss, "__call__", lambda _: mark_loss()),
        (CompileMetrics, "update_state", lambda _: mark_loss()),
        (BaseOptimizer, "apply", lambda _: mark_update()),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, mark in wrapped:
            marked = _marked(vars(owner)[name], mark)
            stack.enter_context(temporary_attributes(owner, **{name: marked}))
        yield


def _marked(
    method: Callable[..., Any], mark: Callable[[Any], AbstractContextManager[object]]
) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with mark(self):
            return method(self, *args, **kwargs)

    return call
