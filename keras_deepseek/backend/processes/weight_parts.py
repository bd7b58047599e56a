"""The division of weights among processes, each of which updates a part of them (ZeRO)."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_deepseek.backend.processes.gradient_buckets import BUCKET_BYTES
from keras_deepseek.backend.processes.group_queue import GroupQueue

Exchange = Callable[[Any], Callable[[], Any]]
"""Function of rows, one for each process, that starts to send them. It returns a function that
waits for the rows that the processes have sent to this one, in the order of the processes."""


Gather = Callable[[Any], Callable[[], Any]]
"""Function of this process's row that starts to send it to all processes. It returns a function
that waits for the rows of all."""


Assign = Callable[[int, Any], object]
"""Function of the index of a weight, and of its value as a vector, which takes the value."""

_MOST_UNDER_WAY = 2
"""The buckets in memory that are sent while others are computed."""


@dataclass(frozen=True)
class Piece:
    """The numbers from `start` to `stop` of a flat weight, which is given by its index."""

    weight: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of weights in it."""
        return self.stop - self.start


class Division:
    """The piece of each weight that each process updates.

    Args:
        sizes: The numbers of each weight.
        by_weight: Whether each weight is updated as a whole by one process, for optimizers that
            need matrices. Else each process updates an equal piece of each weight.
    """

    def __init__(self, sizes: Sequence[int], num_processes: int, *, by_weight: bool) -> None:
        self.by_weight = by_weight
        divide = _divide_by_weight if by_weight else _divide_equally
        self.pieces = divide(sizes, num_processes)
        """By process, its piece of each weight, perhaps empty."""
        self.buckets = list(_group(sizes))
        """The weights whose pieces are sent together, from the last to the first."""
        if by_weight:  # The processes have equally many numbers of all weights together alone.
            self.buckets = [list(itertools.chain.from_iterable(self.buckets))]

    def width(self, bucket: Sequence[int]) -> int:
        """Returns the most numbers of a bucket that a process has."""
        return max(sum(pieces[weight].size for weight in bucket) for pieces in self.pieces)

    def join(self, bucket: Sequence[int], vectors: Sequence[Any], rank: int) -> Any:
        """Returns a process's pieces of flat weights as one row, padded to the width."""
        pieces = [self.pieces[rank][weight] for weight in bucket]
        parts = [
            vector[piece.start : piece.stop]
            for piece, vector in zip(pieces, vectors, strict=True)
            if piece.size
        ]
        return self.pad(bucket, parts)

    def pad(self, bucket: Sequence[int], parts: Sequence[Any]) -> Any:
        """Returns a process's pieces as one row, padded to the width."""
        padding = self.width(bucket) - sum(part.shape[0] for part in parts)
        zeros = [ops.zeros((padding,))] if padding else []
        return ops.concatenate([*parts, *zeros])

    def split(self, bucket: Sequence[int], row: Any, rank: int) -> list[Any]:
        """Returns the pieces in a row of a process, in the order of the bucket."""
        sizes = [self.pieces[rank][weight].size for weight in bucket]
        ends = itertools.accumulate(sizes)
        return [row[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def share(self, vectors: Sequence[Any], gather: Gather, assign: Assign) -> None:
        """Assigns all weights as vectors, from this process's piece of each of them."""
        under_way: deque[tuple[Sequence[int], Callable[[], Any]]] = deque()

        def finish() -> None:
            bucket, wait = under_way.popleft()
            rows = wait()
            by_rank = [self.split(bucket, rows[rank], rank) for rank in range(len(self.pieces))]
            for weight, pieces in zip(bucket, zip(*by_rank, strict=True), strict=True):
                assign(weight, ops.concatenate(pieces))

        for bucket in self.buckets:
            under_way.append((bucket, gather(self.pad(bucket, [vectors[i] for i in bucket]))))
            if len(under_way) > _MOST_UNDER_WAY:
                finish()
        while under_way:
            finish()


class PartSums:
    """The sums of a process's pieces of all gradients, which start during the backward pass.

    A gradient is dropped when it has been sent.
    """

    def __init__(self, division: Division, rank: int, exchange: Exchange) -> None:
        self._division = division
        self._rank = rank
        self._exchange = exchange
        self._received: set[int] = set()
        self._vectors: dict[int, Any] = {}
        self._under_way: deque[tuple[Sequence[int], Callable[[], Any]]] = deque()
        self._pieces: dict[int, Any] = {}
        self._queue = GroupQueue(division.buckets, self._begin)

    def receive(self, index: int, gradient: Any) -> None:
        """Takes one computed gradient; sends the bucket that it completes. Repeats are ignored."""
        if index not in self._received:
            self._received.add(index)
            self._vectors[index] = ops.reshape(gradient, (-1,))
            self._queue.add(index)

    def _begin(self, number: int) -> None:
        bucket = self._division.buckets[number]
        self._under_way.append((bucket, self._exchange(self._make_rows(bucket))))
        if len(self._under_way) > _MOST_UNDER_WAY:
            self._add_up()

    def _make_rows(self, bucket: Sequence[int]) -> Any:
        vectors = [self._vectors.pop(weight) for weight in bucket]
        ranks = range(len(self._division.pieces))
        return ops.stack([self._division.join(bucket, vectors, rank) for rank in ranks])

    def _add_up(self) -> None:
        """Waits for the oldest bucket, and keeps the sums of its pieces."""
        bucket, wait = self._under_way.popleft()
        rows = wait()
        # One after another, as the sum of the whole gradients is made.
        total = functools.reduce(ops.add, [rows[rank] for rank in range(rows.shape[0])])
        self._pieces |= zip(bucket, self._division.split(bucket, total, self._rank), strict=True)

    def finish(self, gradients: Sequence[Any]) -> list[Any]:
        """Returns the sums of all gradients, received or not, as a vector for each weight."""
        for index in reversed(range(len(gradients))):
            if gradients[index] is not None:
                self.receive(index, gradients[index])
        while self._under_way:
            self._add_up()
        return [self._pieces[weight] for weight in sorted(self._pieces)]


def _divide_equally(sizes: Sequence[int], num_processes: int) -> list[list[Piece]]:
    def piece(weight: int, rank: int) -> Piece:
        size, length = sizes[weight], -(-sizes[weight] // num_processes)
        return Piece(weight, min(size, rank * length), min(size, (rank + 1) * length))

    return [[piece(weight, rank) for weight in range(len(sizes))] for rank in range(num_processes)]


def _divide_by_weight(sizes: Sequence[int], num_processes: int) -> list[list[Piece]]:
    """Gives each weight, the largest first, to the process that has the fewest numbers."""
    owners = [0] * len(sizes)
    loads = [0] * num_processes
    for weight in sorted(range(len(sizes)), key=lambda weight: -sizes[weight]):
        owners[weight] = loads.index(min(loads))
        loads[owners[weight]] += sizes[weight]
    return [
        [Piece(weight, 0, size * (owners[weight] == rank)) for weight, size in enumerate(sizes)]
        for rank in range(num_processes)
    ]


def _group(sizes: Sequence[int]) -> Sequence[list[int]]:
    groups: list[list[int]] = []
    filled = capacity = BUCKET_BYTES // 4
    for weight in reversed(range(len(sizes))):
        if filled >= capacity:
            groups.append([])
            filled = 0
        groups[-1].append(weight)
        filled += sizes[weight]
    return groups
