"""Counts values by their size, for `metrics`: what a batch or a request adds is one integer.

It does no locking: whoever adds to one from several threads holds a lock.
"""

from bisect import bisect_left
from dataclasses import dataclass

SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.007),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 2.0, 5.0, 10.0, 30.0),
)
"""Bounds for times: close enough together that a quantile is off by a third at most."""

ROWS = tuple(2**exponent for exponent in range(11))
"""Bounds for the rows of batches, which are padded to powers of two."""


@dataclass(frozen=True)
class HistogramValues:
    """What a histogram held at one moment.

    Args:
        bounds: tuple of numbers, rising.
        counts: tuple of integers: how many values were no larger than each bound and larger than
            the one before; the last, of one more than there are bounds, were larger than all.
        sum: float. Of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def since(self, earlier: "HistogramValues | None") -> "HistogramValues":
        """Returns what was added after an earlier moment.

        Args:
            earlier: `HistogramValues` of the same histogram, or `None`: all of it.
        """
        if earlier is None:
            return self
        counts = (now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return HistogramValues(self.bounds, tuple(counts), self.sum - earlier.sum)

    def plus(self, other: "HistogramValues") -> "HistogramValues":
        """Returns what both hold.

        Args:
            other: `HistogramValues` with the same bounds.
        """
        counts = (one + two for one, two in zip(self.counts, other.counts, strict=True))
        return HistogramValues(self.bounds, tuple(counts), self.sum + other.sum)

    def quantile(self, part: float) -> float | None:
        """Returns the value that so large a part is below, or `None` where there are no values.

        Between two bounds the values are taken to be spread evenly; what is above the last bound is
        told as the last bound.

        Args:
            part: float from 0 to 1.
        """
        rank = part * self.count
        if not rank:
            return None
        below, low = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return low + (bound - low) * (rank - below) / count
            below, low = below + count, bound
        return low


class Histogram:
    """Counts values.

    Args:
        bounds: tuple of numbers, rising.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def values(self) -> HistogramValues:
        """Returns what is counted so far."""
        return HistogramValues(self._bounds, tuple(self._counts), self._sum)
