"""Detection of a StopIteration out of a callback, which Keras takes for the end of the data."""

import threading
from collections.abc import Sequence
from typing import Any

import keras


class StopIterationWatch:
    """Two callbacks, the first and the last of a training, that count the calls of batch hooks.

    A callback between them that raises StopIteration ends Keras's epoch, and the last one misses a
    call. Where the data end, neither is called.

    Args:
        callbacks: sequence of Keras callbacks that stand between the two.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        self.last = _CountCalls()
        self.first = _CompareCalls(self.last, [type(each).__name__ for each in callbacks])


class _CountCalls(keras.callbacks.Callback):
    """Counts the calls of its batch hooks."""

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # Keras may call hooks from several threads.
        self.number = 0

    def get_state(self) -> dict[str, Any]:
        """Returns nothing: the count starts with each training."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing."""

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


class _CompareCalls(_CountCalls):
    """Raises an error at the end of an epoch if the last callback missed a call."""

    def __init__(self, last: _CountCalls, names: Sequence[str]) -> None:
        super().__init__()
        self._last = last
        self._names = names

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.number = self._last.number = 0

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._compare()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._compare()

    def _compare(self) -> None:
        if self.number != self._last.number:
            raise RuntimeError(
                f"One of the callbacks {', '.join(self._names)} raised StopIteration in a batch "
                "hook, which tells Keras that the data have ended. To end a training, set "
                "self.model.stop_training = True."
            )
