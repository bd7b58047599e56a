"""The division of weights among processes, each of which updates a part of them (ZeRO)."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_deepseek.backend.processes.gradient_buckets import group_by_bytes


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
        from_last = reversed(range(len(sizes)))
        self.buckets = list(group_by_bytes(from_last, lambda weight: 4 * sizes[weight]))
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


def cut_pieces(
    pieces_by_rank: Sequence[Sequence[Piece]], capacity: int
) -> Iterator[list[list[Piece]]]:
    """Yields the pieces of each bucket by process, from the last weight to the first.

    The pieces of large weights are cut, so that each bucket has about `capacity` numbers.
    """
    bucket: list[list[Piece]] = [[] for _ in pieces_by_rank]
    num_weights = 0
    for pieces in reversed(list(zip(*pieces_by_rank, strict=True))):
        length = max(piece.size for piece in pieces)
        cut = 0
        while cut < length:
            num_owners = sum(piece.size > cut for piece in pieces)
            end = cut + -(-(capacity - num_weights) // num_owners)
            for part, piece in zip(bucket, pieces, strict=True):
                start, stop = (min(piece.start + bound, piece.stop) for bound in (cut, end))
                part.append(Piece(piece.weight, start, stop))
                num_weights += part[-1].size
            cut = end
            if num_weights >= capacity:
                yield bucket
                bucket, num_weights = [[] for _ in pieces_by_rank], 0
    if num_weights:
        yield bucket
