"""Sums of a process's parts of all gradients, and weights of the parts of all processes (ZeRO)."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from keras_deepseek.backend.processes.gradient_buckets import BUCKET_BYTES
from keras_deepseek.backend.processes.group_queue import GroupQueue
from keras_deepseek.backend.processes.weight_parts import Division, Piece, cut_pieces
from keras_deepseek.backend.torch.bucket_sums import gather_rows
from keras_deepseek.backend.torch.gradient_sums import translate_peer_errors

_MOST_UNDER_WAY = 2
"""The buckets in memory that are sent while others are computed."""


class _Bucket:
    """The pieces of weights that are sent together: by process, one of each weight, perhaps empty.

    A vector of all pieces has those of the first process first.
    """

    def __init__(self, pieces_by_rank: Sequence[Sequence[Piece]]) -> None:
        self.pieces_by_rank = pieces_by_rank
        self.pieces = [piece for pieces in pieces_by_rank for piece in pieces]
        self.sizes = [sum(piece.size for piece in pieces) for pieces in pieces_by_rank]
        """By process, the numbers of its pieces."""
        self.weights = [piece.weight for piece in pieces_by_rank[0]]


class PartSums:
    """The sums of a process's pieces of all gradients, which start during the backward pass.

    Large gradients are cut into several buckets, so that little memory is needed beside them. A
    gradient is dropped when it has been sent.
    """

    def __init__(self, division: Division, rank: int, device: torch.device) -> None:
        self.division = division
        self._rank = rank
        # A bucket has the bytes of the pieces of all processes together.
        buckets = cut_pieces(division.pieces, BUCKET_BYTES // 4)
        self._buckets = [_Bucket(pieces) for pieces in buckets]
        self._last_buckets = {
            weight: number
            for number, bucket in enumerate(self._buckets)
            for weight in bucket.weights
        }
        self._sizes_from_last = [piece.size for piece in reversed(division.pieces[rank])]
        # Kept from step to step: allocating memory would take as long as the sums.
        self._total = torch.empty(sum(self._sizes_from_last), device=device)

    def start(self) -> None:
        """Starts the sums of a step, which overwrite those of the last step."""
        self._received: set[int] = set()
        self._vectors: dict[int, torch.Tensor] = {}
        self._under_way: deque[Callable[[], torch.Tensor]] = deque()
        self._place = 0  # The end of the last bucket that was added up.
        self._queue = GroupQueue([bucket.weights for bucket in self._buckets], self._begin)

    def receive(self, index: int, gradient: torch.Tensor) -> None:
        """Takes one computed gradient; sends the buckets that it completes. Repeats are ignored."""
        if index not in self._received:
            self._received.add(index)
            self._vectors[index] = gradient.detach().reshape(-1)
            del gradient
            with torch.no_grad(), translate_peer_errors("sum the gradients"):
                self._queue.add(index)

    def finish(self, gradients: Sequence[Any]) -> list[torch.Tensor]:
        """Returns the sums of all gradients, received or not, as a vector for each weight."""
        for index in reversed(range(len(gradients))):
            if gradients[index] is not None:
                self.receive(index, gradients[index])
        with torch.no_grad(), translate_peer_errors("sum the gradients"):
            while self._under_way:
                self._add_up()
        self._vectors = {}
        return list(self._total.split(self._sizes_from_last)[::-1])

    def share(self, parts: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> None:
        """Writes all weights, given as vectors, from this process's vector of each of them."""
        under_way: deque[tuple[_Bucket, Callable[[], torch.Tensor]]] = deque()

        def finish() -> None:
            bucket, wait = under_way.popleft()
            vectors = wait().split([piece.size for piece in bucket.pieces])
            for piece, vector in zip(bucket.pieces, vectors, strict=True):
                weights[piece.weight][piece.start : piece.stop].copy_(vector)

        starts = [piece.start for piece in self.division.pieces[self._rank]]
        with torch.no_grad(), translate_peer_errors("send the updated weights"):
            for bucket in self._buckets:
                pieces = bucket.pieces_by_rank[self._rank]
                row = [
                    parts[piece.weight][piece.start - start : piece.stop - start]
                    for piece in pieces
                    for start in [starts[piece.weight]]
                ]
                under_way.append((bucket, self._gather(bucket, torch.cat(row))))
                if len(under_way) > _MOST_UNDER_WAY:
                    finish()
            while under_way:
                finish()

    def _begin(self, number: int) -> None:
        bucket = self._buckets[number]
        rows = [self._vectors[piece.weight][piece.start : piece.stop] for piece in bucket.pieces]
        own_sizes = [bucket.sizes[self._rank]] * len(bucket.sizes)
        self._under_way.append(_exchange(torch.cat(rows), bucket.sizes, own_sizes))
        for weight in bucket.weights:
            if self._last_buckets[weight] == number:
                del self._vectors[weight]
        if len(self._under_way) > _MOST_UNDER_WAY:
            self._add_up()

    def _add_up(self) -> None:
        """Waits for the oldest bucket, and adds up what the processes sent, in their order."""
        received = self._under_way.popleft()()
        rows = received.view(len(self.division.pieces), -1) if len(received) else received[None]
        total = self._total[self._place :][: rows.shape[1]]
        self._place += rows.shape[1]
        total.copy_(rows[0])
        for row in rows[1:]:
            total.add_(row)

    def _gather(self, bucket: _Bucket, row: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Starts to send a row to all processes; returns a function that waits for all rows."""
        if len(set(bucket.sizes)) > 1:
            sizes = [len(row)] * len(bucket.sizes)
            return _exchange(row.repeat(len(bucket.sizes)), sizes, bucket.sizes)
        rows = row.new_empty(sum(bucket.sizes))
        work = gather_rows(rows, row, async_op=True)
        return lambda: _wait(work, rows)


def _exchange(
    rows: torch.Tensor, sizes: Sequence[int], own_sizes: Sequence[int]
) -> Callable[[], torch.Tensor]:
    """Starts to send a row to each process; returns a function that waits for theirs."""
    received = rows.new_empty(sum(own_sizes))
    work = dist.all_to_all_single(received, rows, [*own_sizes], [*sizes], async_op=True)
    return lambda: _wait(work, received)


def _wait(work: Any, result: torch.Tensor) -> torch.Tensor:
    work.wait()
    return result
