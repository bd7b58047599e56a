"""The bound on how many updates the weights of a batch may have missed (staleness)."""


class StalenessBound:
    """Decides when a batch may start, so that no weights miss more updates than the bound.

    For each unfinished batch it counts the most that its weights can miss: the updates that may not
    have been in them when the batch started, and every batch that started later. `num_workers`
    batches are computed at once. With `looks_ahead`, a worker may pull weights before its batch is
    there.
    """

    def __init__(self, bound: int, num_workers: int, *, looks_ahead: bool = True) -> None:
        self.bound = bound
        # If no worker is slow, a batch misses up to 3 * num_workers - 2 updates: those that the
        # others push and compute meanwhile.
        spare = bound - (3 * num_workers - 2)
        self.most_before = max(0, min(num_workers, spare)) if looks_ahead else 0
        """The updates that weights may miss that are pulled before their batch is there."""
        self._misses: dict[int, int] = {}

    def may_begin(self) -> bool:
        """Returns True if another batch may start now."""
        if not self._misses:
            return True
        possible_misses = len(self._misses) + self.most_before
        return max(possible_misses, *(misses + 1 for misses in self._misses.values())) <= self.bound

    def begin(self, number: int) -> None:
        """Counts a batch that starts on a worker."""
        possible_misses = len(self._misses) + self.most_before
        self._misses = {other: misses + 1 for other, misses in self._misses.items()}
        self._misses[number] = possible_misses

    def end(self, number: int) -> None:
        """Forgets a batch whose update was made, or that must be computed again."""
        self._misses.pop(number, None)
