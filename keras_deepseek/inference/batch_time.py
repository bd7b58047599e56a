"""How long a batch takes: what `wait_rule` and `batch_queue` reckon with. Pure."""

import math

WEIGHT = 0.1
"""What the newest batch of a size counts for in the mean of its size."""


class BatchTime:
    """The seconds that the model takes for a batch: `overhead + per_row * rows`, fitted.

    The mean of each batch size is kept, with more weight on what is newer, and a line is laid
    through them. Until a batch was measured, every time is zero: nothing is refused and nothing
    waits for want of knowledge.

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
        self._means: dict[int, float] = {}
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
        return bool(self._means)

    def add(self, rows: int, seconds: float) -> None:
        """Takes a batch into account.

        Args:
            rows: integer. Rows that the model saw, those of padding among them.
            seconds: float. How long it took.
        """
        mean = self._means.get(rows)
        self._means[rows] = seconds if mean is None else mean + WEIGHT * (seconds - mean)
        self._line = None

    def predict(self, rows: int) -> float:
        """Returns the seconds that a batch of so many rows is expected to take.

        Args:
            rows: integer. Rows that the model sees.
        """
        mean = self._means.get(rows)
        return self.overhead + self.per_row * rows if mean is None else mean

    def _fitted_line(self) -> tuple[float, float]:
        if self._line is None:
            self._line = self._fit()
        return self._line

    def _fit(self) -> tuple[float, float]:
        sizes, times = tuple(self._means), tuple(self._means.values())
        middle, level = math.fsum(sizes) / len(sizes), math.fsum(times) / len(times)
        spread = math.fsum((size - middle) ** 2 for size in sizes)
        slope = 0.0
        if spread:
            products = ((size - middle) * time for size, time in zip(sizes, times, strict=True))
            slope = max(math.fsum(products) / spread, 0.0)
        # A line that would give a batch of no rows less than no time goes through zero.
        per_row = min(slope, level / middle)
        return max(level - per_row * middle, 0.0), per_row
