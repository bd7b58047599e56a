"""How old the weights may be that an update is computed from."""


class StalenessBound:
    """Says when a batch may be begun, so that no update misses more updates than the bound.

    What is known of a batch that is under way is the most that its weights can miss: the updates
    that were not in them for sure when it began, and each that began after it.

    Args:
        bound: integer. The updates that may be missed.
        num_workers: integer. How many compute at once.
        looks_ahead: boolean. Whether weights may be pulled before their batch is there. Defaults to
            `True`.
    """

    def __init__(self, bound: int, num_workers: int, *, looks_ahead: bool = True) -> None:
        self.bound = bound
        # As long as nobody is slow, a batch meets those that the others push and compute, thrice.
        spare = bound - (3 * num_workers - 2)
        self.most_before = max(0, min(num_workers, spare)) if looks_ahead else 0
        """How many updates weights may miss that are pulled before their batch is there."""
        self._misses: dict[int, int] = {}

    def may_begin(self) -> bool:
        """Returns whether a further batch may be begun now."""
        if not self._misses:
            return True
        own = len(self._misses) + self.most_before
        return max(own, *(misses + 1 for misses in self._misses.values())) <= self.bound

    def begin(self, number: int) -> None:
        """Counts a batch that is begun.

        Args:
            number: integer. Which batch.
        """
        own = len(self._misses) + self.most_before
        self._misses = {other: misses + 1 for other, misses in self._misses.items()}
        self._misses[number] = own

    def end(self, number: int) -> None:
        """Forgets a batch whose update was made, or whose worker was lost.

        Args:
            number: integer. Which batch.
        """
        self._misses.pop(number, None)
