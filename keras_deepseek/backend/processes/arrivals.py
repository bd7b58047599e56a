"""Work on groups of things that come one by one, in one order wherever it is done.

The gradients of a step come in the order in which the backward pass finds them, and processes that
train together must sum them in the same order.
"""

from collections.abc import Callable, Collection, Sequence


class Arrivals:
    """Begins groups in their order, each once all that is in it has come.

    Args:
        groups: list of collections of integers. What is in each group.
        begin: Function of the number of a group, counted from 0.
    """

    def __init__(self, groups: Sequence[Collection[int]], begin: Callable[[int], object]) -> None:
        self._missing = [set(group) for group in groups]
        self._begin = begin
        self._next = 0
        self._come: set[int] = set()

    def add(self, index: int) -> None:
        """Begins the groups whose turn it is now that something has come."""
        self._come.add(index)
        while self._next < len(self._missing) and self._missing[self._next] <= self._come:
            self._next += 1
            self._begin(self._next - 1)
