"""Detects a StopIteration from a callback, which Keras takes for the end of the data."""

import threading
import traceback
from collections.abc import Sequence
from typing import Any

import keras

_OWN = "keras_deepseek."


def add_stop_iteration_check(callbacks: list[keras.callbacks.Callback]) -> None:
    """Adds a pair of callbacks, first and last, that count calls of batch hooks.

    If a callback between them raises StopIteration, Keras ends the epoch, and the last callback
    misses a call. At the end of the data, neither is called. Our own callbacks need no check.
    """
    callback_types = [type(callback) for callback in callbacks]
    names = [
        callback_type.__name__
        for callback_type in callback_types
        if not callback_type.__module__.startswith(_OWN)
    ]
    if names:
        last = _CallCounter()
        callbacks.insert(0, _CallComparer(last, names))
        callbacks.append(last)


def find_callback_hook(error: BaseException | None) -> str | None:
    """Returns the user's callback and hook that raised an error, as in `"Stop.on_epoch_end"`."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            callback = frame.f_locals.get("self")
            is_own = type(callback).__module__.startswith((_OWN, "keras."))
            if isinstance(callback, keras.callbacks.Callback) and not is_own:
                return f"{type(callback).__name__}.{frame.f_code.co_name}"
        error = error.__cause__
    return None


def callback_stop_error(what: str) -> RuntimeError:
    """Returns the error for a callback that raised StopIteration."""
    return RuntimeError(
        f"{what} raised StopIteration. Keras takes it for the end of the data. To end a training, "
        "set self.model.stop_training = True."
    )


class _CallCounter(keras.callbacks.Callback):
    """A callback that counts the calls of its batch hooks."""

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # Keras may call hooks from several threads.
        self.number = 0

    def get_state(self) -> dict[str, Any]:
        """Returns nothing, because the count starts with each training."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because the count starts with each training."""

    def _count(self) -> None:
        with self._lock:
            self.number += 1

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()


class _CallComparer(_CallCounter):
    """The callback that compares its call count with that of the last callback."""

    def __init__(self, last: _CallCounter, names: Sequence[str]) -> None:
        super().__init__()
        self._last = last
        self._names = names

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.number = self._last.number = 0

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self.compare()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.compare()

    def compare(self) -> None:
        """Raises an error if the last callback got fewer calls than this first one."""
        if self.number != self._last.number:
            names = ", ".join(self._names)
            what = names if len(self._names) == 1 else f"One of the callbacks {names}"
            raise callback_stop_error(f"{what}, in a batch hook,")
