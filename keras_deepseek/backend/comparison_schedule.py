"""The times at which what runs in a model's place is compared with the model again."""

_SHARE = 0.01
"""The largest share of the time of all runs that comparisons may take."""


class ComparisonSchedule:
    """Counts runs and comparisons of a program that has proved itself by a first comparison.

    Comparisons come at runs 2, 16, 256 and so on, and wait until all of them have taken less than
    1 % of the time of the runs. A proof after a first run that had no program is that of run 2.
    """

    def __init__(self) -> None:
        self.num_runs = 0
        self._next_comparison = 1
        self._seconds = self._seconds_of_comparisons = 0.0

    def is_due(self) -> bool:
        """Returns True if the program should be compared in place of its next run."""
        is_cheap = self._seconds_of_comparisons <= _SHARE * self._seconds
        return self.num_runs >= self._next_comparison and is_cheap

    def add_run(self, seconds: float) -> None:
        """Counts a run."""
        self.num_runs += 1
        self._seconds += seconds

    def add_comparison(self, seconds: float) -> None:
        """Counts a comparison, and plans the next one."""
        self._seconds_of_comparisons += seconds
        self._next_comparison = 15 if self._next_comparison == 1 else 16 * (self.num_runs + 1) - 1
