"""A queue that starts groups of items in a fixed order, in whatever order the items come.

The gradients of a step come in the order of the backward pass, and processes that train together
must sum them in one order.
"""

from collections.abc import Callable, Collection, Sequence


class GroupQueue:
    """Starts each group of items in the order of group indices, once all its items are there."""

    def __init__(self, groups: Sequence[Collection[int]], begin: Callable[[int], object]) -> None:
        self._missing = [set(group) for group in groups]
        self._begin = begin
        self._next = 0
        self._come: set[int] = set()

    def add(self, index: int) -> None:
        """Adds an item to its group, and starts the groups that are complete and next in order."""
        self._come.add(index)
        while self._next < len(self._missing) and self._missing[self._next] <= self._come:
            self._next += 1
            self._begin(self._next - 1)
