"""Measures the time that a model takes for a batch, and predicts it by the number of rows.

`batching_policy` and `batch_queue` use it.
"""

import math
from collections import deque

NUM_KEPT = 16
"""The number of last batches of a size whose median is the time of the size."""

NUM_UNTIL_STALE = 128
"""The number of batches of other sizes after which the times of a size are partly forgotten."""


class BatchTime:
    """The time of a batch in seconds, fitted as `overhead + per_row * rows`.

    The time of a size is the median of its last batches, so that one slow batch changes nothing. A
    line is fitted through the sizes. A size that does not run any more can't stay slow for ever:
    its slower half of batches is forgotten regularly. Before the first batch every time is zero, so
    that nothing is refused and nothing waits.
    """

    def __init__(self) -> None:
        self._latest: dict[int, deque[float]] = {}
        self._times: dict[int, float] = {}
        self._numbers: dict[int, int] = {}
        self._num_batches = 0
        self._line: tuple[float, float] | None = (0.0, 0.0)

    @property
    def overhead(self) -> float:
        """The constant part of a batch's time in seconds, whatever its number of rows."""
        return self._fitted_line()[0]

    @property
    def per_row(self) -> float:
        """The seconds that each row adds to a batch's time."""
        return self._fitted_line()[1]

    @property
    def is_known(self) -> bool:
        """True if a batch was measured."""
        return bool(self._times)

    def add(self, rows: int, seconds: float) -> None:
        """Adds the measured time of a batch. The rows include padding."""
        latest = self._latest.setdefault(rows, deque(maxlen=NUM_KEPT))
        latest.append(seconds)
        self._times[rows] = _low_median(latest)
        self._num_batches += 1
        self._numbers[rows] = self._num_batches
        self._line = None
        if self._num_batches % NUM_UNTIL_STALE == 0:
            self._age()

    def predict(self, rows: int) -> float:
        """Returns the expected seconds of a batch with a number of rows, with padding."""
        time = self._times.get(rows)
        return self.overhead + self.per_row * rows if time is None else time

    def _age(self) -> None:
        """Drops the slower half of the measured times of batch sizes that no longer run."""
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
            other_times = {size: time for size, time in self._times.items() if size != rows}
            overhead, per_row = _fit(other_times)
            time = self._times[rows]
            self._times[rows] = min(time, (time + overhead + per_row * rows) / 2)

    def _fitted_line(self) -> tuple[float, float]:
        if self._line is None:
            self._line = _fit(self._times)
        return self._line


def _low_median(times: deque[float] | list[float]) -> float:
    """Returns the median, or the lower of two middle values, since slow batches are exceptions."""
    return sorted(times)[(len(times) - 1) // 2]


def _fit(times: dict[int, float]) -> tuple[float, float]:
    """Returns the overhead of a batch, and the seconds of each row, by least squares."""
    middle, level = math.fsum(times) / len(times), math.fsum(times.values()) / len(times)
    spread = math.fsum((size - middle) ** 2 for size in times)
    slope = 0.0
    if spread:
        products = ((size - middle) * time for size, time in times.items())
        slope = max(math.fsum(products) / spread, 0.0)
    # The overhead must not be negative: then the line goes through zero.
    per_row = min(slope, level / middle)
    return max(level - per_row * middle, 0.0), per_row
