"""A histogram of values, such as seconds, for the metrics. Adding a value increments one integer.

A histogram takes no lock: a caller with several threads holds one.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.007),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 2.0, 5.0, 10.0, 30.0),
)
"""The bounds for times: so close together that a quantile is wrong by a third at most."""

ROWS = tuple(2**exponent for exponent in range(11))
"""The bounds for the rows of batches, which are padded to powers of two."""


@dataclass(frozen=True)
class HistogramValues:
    """The state of a histogram at one moment: the count of values between each two bounds.

    `counts` has the number of values up to each bound and above the one before, and a last one for
    the values above all bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """The number of values in the histogram."""
        return sum(self.counts)

    def since(self, earlier: "HistogramValues | None") -> "HistogramValues":
        """Returns the state with only the values that were added since an earlier moment.

        `None`: all values.
        """
        if earlier is None:
            return self
        counts = (now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return HistogramValues(self.bounds, tuple(counts), self.sum - earlier.sum)

    def plus(self, other: "HistogramValues") -> "HistogramValues":
        """Returns the sum of this histogram's counts and another's.

        Both must have the same bounds.
        """
        counts = (
            own_count + other_count
            for own_count, other_count in zip(self.counts, other.counts, strict=True)
        )
        return HistogramValues(self.bounds, tuple(counts), self.sum + other.sum)

    def quantile(self, part: float) -> float | None:
        """Returns the value below which a fraction `part` of the values lies.

        It is `None` without values. Values are assumed to be spread evenly between two bounds, and
        those above the last bound count as that bound.
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


def sum_values(histograms: Iterable[HistogramValues]) -> HistogramValues:
    """Returns the sum of at least one histogram, all with the same bounds."""
    return reduce(HistogramValues.plus, histograms)


class Histogram:
    """A histogram that counts values between ascending bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Adds a value to the histogram."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def values(self) -> HistogramValues:
        """Returns the present state of the histogram."""
        return HistogramValues(self._bounds, tuple(self._counts), self._sum)
