"""The sharing of the machine among models: a limit of batches at once, and a fair order."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class FairScheduler:
    """Limits how many batches of all models run at the same time.

    Of the waiting models, the one that has run for the least seconds is next. A model that was idle
    gets no credit for that: its seconds are raised to those of the least served active model.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = limit
        self._clock = clock
        self._condition = threading.Condition()
        self._served: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._running: dict[str, int] = {}

    @contextlib.contextmanager
    def take(self, model: str) -> Iterator[None]:
        """Context manager that waits for a model's turn, and holds it during the block."""
        with self._condition:
            self._ask(model)
            self._condition.wait_for(lambda: self._free and self._next() == model)
            self._waiting[model] -= 1
            self._running[model] = self._running.get(model, 0) + 1
            self._free -= 1
            self._condition.notify_all()  # There may be another turn, for another model.
        start = self._clock()
        try:
            yield
        finally:
            with self._condition:
                self._served[model] += self._clock() - start
                self._running[model] -= 1
                self._free += 1
                self._condition.notify_all()

    def _ask(self, model: str) -> None:
        if not self._is_active(model):
            active_times = [
                served for other, served in self._served.items() if self._is_active(other)
            ]
            self._served[model] = max(self._served.get(model, 0.0), min(active_times, default=0.0))
        self._waiting[model] = self._waiting.get(model, 0) + 1

    def _is_active(self, model: str) -> bool:
        return bool(self._waiting.get(model) or self._running.get(model))

    def _next(self) -> str:
        waiting = [model for model, count in self._waiting.items() if count]
        return min(waiting, key=lambda model: self._served[model])
