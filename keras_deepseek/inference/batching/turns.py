"""Shares the machine among models: how many batches run at the same time, and whose is next."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Turns:
    """Lets a number of batches run at the same time; of models that wait, the least served is next.

    What a model has had is counted in seconds. One that did not ask for a while is not owed what it
    missed: it begins with as much as the least served of those that ask.

    Args:
        limit: integer. Batches that run at the same time.
        clock: Function that returns the time in seconds. Defaults to `time.monotonic`.
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
        """Waits for a turn, and holds it.

        Args:
            model: string. Whose batch is to run.
        """
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
            others = [served for other, served in self._served.items() if self._is_active(other)]
            self._served[model] = max(self._served.get(model, 0.0), min(others, default=0.0))
        self._waiting[model] = self._waiting.get(model, 0) + 1

    def _is_active(self, model: str) -> bool:
        return bool(self._waiting.get(model) or self._running.get(model))

    def _next(self) -> str:
        waiting = [model for model, count in self._waiting.items() if count]
        return min(waiting, key=lambda model: self._served[model])
