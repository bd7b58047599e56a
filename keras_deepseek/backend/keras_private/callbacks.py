"""The callbacks of a training that is running."""

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras

SET_BY_KERAS = ("_model", "params")
"""The attributes of a callback that Keras sets when a training begins."""

_SECONDS_BETWEEN_HAND_OVERS = 0.05


class GroupedCallbackList(keras.callbacks.CallbackList):
    """A callback list that hands calls to its thread in groups.

    Keras hands over the end of each batch by itself, to several threads, which may run the calls in
    another order. That takes 0.1 ms of a small step. Here one thread runs the calls of 50 ms
    together, in their order. Callbacks that are not `async_safe` are called after each batch, as in
    Keras.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting: list[Callable[[], None]] = []
        self._next_hand_over = 0.0

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls the callbacks, if there are any."""
        if self.callbacks:
            super().on_test_batch_end(batch, logs)

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Calls the callbacks, if there are any."""
        if self.callbacks:
            super().on_predict_batch_end(batch, logs)

    def _async_dispatch(self, function: Callable[..., None], *arguments: Any) -> None:
        self._waiting.append(functools.partial(function, *arguments))
        now = time.monotonic()
        if now >= self._next_hand_over and all(future.done() for future in self._futures):
            self._next_hand_over = now + _SECONDS_BETWEEN_HAND_OVERS
            super()._flush_futures()  # Raises the error of a callback.
            super()._async_dispatch(_call_all, self._take_waiting())

    def _flush_futures(self) -> None:
        super()._flush_futures()
        _call_all(self._take_waiting())

    def _take_waiting(self) -> list[Callable[[], None]]:
        calls, self._waiting = self._waiting, []
        return calls


@contextlib.contextmanager
def grouped_callbacks() -> Iterator[None]:
    """Context manager in which Keras's loops make a `GroupedCallbackList` of their callbacks."""
    # Not what the module had before: trainings of two threads may overlap.
    module, original = keras.src.callbacks, keras.callbacks.CallbackList
    module.CallbackList = GroupedCallbackList
    try:
        yield
    finally:
        module.CallbackList = original


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def trained_model(callback: keras.callbacks.Callback) -> keras.Model:
    """Returns the model of a callback, without copying its variables.

    On JAX, `callback.model` copies the values of all variables back, which slows the next step.
    """
    return callback._model


def finish_callbacks(callbacks: keras.callbacks.CallbackList) -> None:
    """Waits for the callbacks that run in a thread."""
    callbacks._flush_futures()


def active_callbacks(callback: keras.callbacks.Callback) -> list[keras.callbacks.Callback]:
    """Returns all callbacks of the running training, from within one of them.

    Keras gives no access to the others, so this searches the call stack for their list.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and any(
            member is callback for member in caller.callbacks
        ):
            return list(caller.callbacks)
        frame = frame.f_back
    return [callback]
