"""The sharing of the machine: a fair order of models or clients, and a limit of batches at once."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

NUM_KEPT = 1024
"""The most idle names whose seconds are remembered."""


class FairOrder:
    """Seconds of the machine by name: of those that want it, the one with the least is next.

    A name that was idle gets no credit for that. It starts at the `level`: the seconds of a name
    that has always been active and has always had an equal share. The level rises with all work, so
    that a name waits only for so long, however many new ones come.

    Reference: Sheng et al., "Fairness in Serving Large Language Models", 2024.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.level = 0.0
        self._active: Counter[str] = Counter()

    def join(self, name: str) -> None:
        """Adds a request of a name, which is active until all of its requests have left."""
        if not self._active[name]:
            self.seconds[name] = max(self.seconds.get(name, 0.0), self.level)
        self._active[name] += 1

    def leave(self, name: str) -> None:
        """Removes a request of a name."""
        self._active[name] -= 1
        if not self._active[name]:
            del self._active[name]
            if len(self.seconds) > NUM_KEPT + len(self._active):
                self._forget()

    def charge(self, name: str, seconds: float) -> None:
        """Adds the seconds that the machine has worked for a name."""
        if name in self.seconds:
            self.seconds[name] += seconds
        self.level += seconds / max(len(self._active), 1)

    def _forget(self) -> None:
        """Drops idle names, except those that have had the most above their share."""
        idle = [
            name
            for name, seconds in self.seconds.items()
            if name not in self._active and seconds > self.level
        ]
        remembered = sorted(idle, key=self.seconds.__getitem__)[-NUM_KEPT // 2 :]
        self.seconds = {name: self.seconds[name] for name in (*self._active, *remembered)}


class FairScheduler:
    """Limits how many batches of all models run at the same time.

    Of the waiting models, the one that has run for the least seconds is next, by a `FairOrder`.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = limit
        self._clock = clock
        self._condition = threading.Condition()
        self._order = FairOrder()
        self._waiting: Counter[str] = Counter()

    @contextlib.contextmanager
    def take(self, model: str) -> Iterator[None]:
        """Context manager that waits for a model's turn, and holds it during the block."""
        with self._condition:
            self._ask(model)
            self._condition.wait_for(lambda: self._free and self._next() == model)
            self._waiting[model] -= 1
            self._free -= 1
            self._condition.notify_all()  # There may be another turn, for another model.
        start = self._clock()
        try:
            yield
        finally:
            with self._condition:
                self._order.charge(model, self._clock() - start)
                self._order.leave(model)
                self._free += 1
                self._condition.notify_all()

    def _ask(self, model: str) -> None:
        self._order.join(model)
        self._waiting[model] += 1

    def _next(self) -> str:
        waiting = [model for model, count in self._waiting.items() if count]
        return min(waiting, key=self._order.seconds.__getitem__)
