"""How long a batch takes: what `wait_rule` and `batch_queue` reckon with. Pure."""

import math
from collections import deque

NUM_KEPT = 16
"""How many of the last batches of a size are looked at: their median is what the size takes."""

NUM_UNTIL_STALE = 128
"""After so many batches of other sizes, what is known of a size loses weight, and again."""


class BatchTime:
    """The seconds that the model takes for a batch: `overhead + per_row * rows`, fitted.

    The median of the last batches of each size is its time, so that one slow batch changes nothing,
    and a line is laid through the sizes. A size that is not run any more can't stay slow for ever:
    of its batches the slower half is forgotten, time after time, and then its time falls towards
    the line through the other sizes. Until a batch was measured, every time is zero: nothing is
    refused and nothing waits for want of knowledge.

    Example:

    >>> time = BatchTime()
    >>> time.add(1, 0.005)
    >>> time.add(4, 0.008)
    >>> round(time.overhead, 6), round(time.per_row, 6)
    (0.004, 0.001)
    >>> round(time.predict(8), 6)
    0.012
    """

    def __init__(self) -> None:
        self._latest: dict[int, deque[float]] = {}
        self._times: dict[int, float] = {}
        self._numbers: dict[int, int] = {}
        self._num_batches = 0
        self._line: tuple[float, float] | None = (0.0, 0.0)

    @property
    def overhead(self) -> float:
        """Seconds of a batch beside what its rows add."""
        return self._fitted_line()[0]

    @property
    def per_row(self) -> float:
        """Seconds that each row adds."""
        return self._fitted_line()[1]

    @property
    def is_known(self) -> bool:
        """Whether a batch was measured."""
        return bool(self._times)

    def add(self, rows: int, seconds: float) -> None:
        """Takes a batch into account.

        Args:
            rows: integer. Rows that the model saw, those of padding among them.
            seconds: float. How long it took.
        """
        latest = self._latest.setdefault(rows, deque(maxlen=NUM_KEPT))
        latest.append(seconds)
        self._times[rows] = _low_median(latest)
        self._num_batches += 1
        self._numbers[rows] = self._num_batches
        self._line = None
        if self._num_batches % NUM_UNTIL_STALE == 0:
            self._age()

    def predict(self, rows: int) -> float:
        """Returns the seconds that a batch of so many rows is expected to take.

        Args:
            rows: integer. Rows that the model sees.
        """
        time = self._times.get(rows)
        return self.overhead + self.per_row * rows if time is None else time

    def _age(self) -> None:
        """Lets what is known of the sizes that are not run lose weight."""
        for rows, number in self._numbers.items():
            if self._num_batches - number < NUM_UNTIL_STALE:
                continue
            latest = self._latest[rows]
            faster = sorted(latest)[: len(latest) // 2]
            latest.clear()
            latest.extend(faster)
            if faster:
                self._times[rows] = _low_median(faster)
                continue
            others = {size: time for size, time in self._times.items() if size != rows}
            overhead, per_row = _fit(others)
            time = self._times[rows]
            self._times[rows] = min(time, (time + overhead + per_row * rows) / 2)

    def _fitted_line(self) -> tuple[float, float]:
        if self._line is None:
            self._line = _fit(self._times)
        return self._line


def _low_median(times: deque[float] | list[float]) -> float:
    """Returns the median; of two in the middle the smaller: what is slow is the exception."""
    return sorted(times)[(len(times) - 1) // 2]


def _fit(times: dict[int, float]) -> tuple[float, float]:
    """Returns the seconds of a batch beside its rows, and those of each row."""
    middle, level = math.fsum(times) / len(times), math.fsum(times.values()) / len(times)
    spread = math.fsum((size - middle) ** 2 for size in times)
    slope = 0.0
    if spread:
        products = ((size - middle) * time for size, time in times.items())
        slope = max(math.fsum(products) / spread, 0.0)
    # A line that would give a batch of no rows less than no time goes through zero.
    per_row = min(slope, level / middle)
    return max(level - per_row * middle, 0.0), per_row
