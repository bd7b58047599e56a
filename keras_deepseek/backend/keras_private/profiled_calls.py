"""Marks around the calls of Keras's layers, losses, metrics and optimizers, for a profile."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics

from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes


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
