"""Sums gradients over processes, exact or compressed, during the backward pass."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import torch
import torch.distributed as dist

from keras_deepseek.backend.processes.gradient_buckets import group_by_bytes
from keras_deepseek.backend.processes.gradient_compression import Compression, LowRank
from keras_deepseek.backend.processes.group_queue import GroupQueue
from keras_deepseek.backend.processes.processes import PeerErrorTranslator
from keras_deepseek.backend.processes.weight_parts import Piece, cut_pieces
from keras_deepseek.backend.torch.bucket_sums import (
    BucketSum,
    ExactSum,
    LowRankSum,
    RoundedSum,
    SumOfMatrix,
)

Bucket = list[tuple[int, slice]]
"""Gradients by index, and the slice of each that is summed together with the others."""

_PART_BYTES, _MOST_PARTS = 2 * 2**20, 32
"""Sizes of a bucket: each rank adds up this much of it in float32. Smaller messages cost gloo's
threads more time. Of larger buckets, fewer are under way while gradients are computed."""


class GradientSums:
    """The sums of all gradients over all ranks, which start during the backward pass.

    Gradients are ordered from the last to the first, as the backward pass finds most of them, and
    cut into buckets. All ranks start the buckets in the same order. With `low_rank`, buckets hold
    whole gradients.
    """

    def __init__(
        self, variables: Sequence[keras.Variable], sharing: Any, low_rank: LowRank | None
    ) -> None:
        self.shapes = [tuple(variable.shape) for variable in variables]
        sizes = [math.prod(shape) for shape in self.shapes]
        self._low_rank = low_rank
        self._sharing = sharing
        self._sizes_from_last = sizes[::-1]
        self._buckets = _cut(sizes) if low_rank is None else _group(sizes)
        device = variables[0].value.device if variables else "cpu"
        self._total = torch.empty(sum(sizes), device=device)
        self._spare = torch.empty(0)  # A step writes the next residual into it.
        self._is_early = self._total.device.type == "cpu"

    def is_for(self, variables: Sequence[keras.Variable], low_rank: LowRank | None) -> bool:
        """Returns True if this object can sum the gradients of the given variables."""
        shapes = [tuple(variable.shape) for variable in variables]
        device = variables[0].value.device if variables else self._total.device
        same = shapes == self.shapes and device == self._total.device
        return same and low_rank == self._low_rank

    def start(self, compression: Compression | None) -> None:
        """Starts the sums of a step, exact without `compression`.

        Its sums overwrite those of the last step.
        """
        self._compression = compression
        if compression is not None:
            self._residual = compression.residual.value.detach()
            # Allocating memory would take as long as an update.
            if self._spare.shape != self._residual.shape or not self._is_early:
                self._spare = torch.empty_like(self._residual)
        self._vectors: dict[int, torch.Tensor] = {}
        self._begun: list[BucketSum] = []
        self._place = 0  # The end of the last bucket that was started.
        self._factors = len(self._total)  # The same for the factors, which follow all gradients.
        self._num_shared = 0
        self._queue = GroupQueue(
            [[index for index, _ in bucket] for bucket in self._buckets], self._begin_bucket
        )

    def receive(self, index: int, gradient: torch.Tensor) -> None:
        """Takes one computed gradient, and starts the sums of buckets that it completes.

        Repeated calls are ignored.
        """
        if index in self._vectors:
            return
        self._vectors[index] = gradient.detach().reshape(-1)
        # The backward pass itself is not checked for lost peers.
        with translate_peer_errors("sum the gradients"):
            self._queue.add(index)
            # NCCL needs one order of all messages. gloo has an order for each group.
            while self._is_early and self._num_shared < len(self._begun):
                if not self._begun[self._num_shared].is_received():
                    break
                self._share_next()

    def finish(self) -> list[torch.Tensor]:
        """Returns the summed gradients, after all gradients were received."""
        with torch.no_grad(), translate_peer_errors("sum the gradients"):
            while self._num_shared < len(self._begun):
                self._share_next()
            for bucket_sum in self._begun:
                bucket_sum.finish()
        self._begun, self._vectors = [], {}
        vectors = self._total.split(self._sizes_from_last)[::-1]
        return [vector.view(shape) for vector, shape in zip(vectors, self.shapes, strict=True)]

    def keep(self) -> None:
        """Makes this step's compression loss the residual that is added in the next step."""
        if self._compression is not None:
            # A copy would take as long as an update.
            self._compression.residual.value.data, self._spare = self._spare, self._residual

    def _begin_bucket(self, number: int) -> None:
        bucket = self._buckets[number]
        vectors = [self._vectors[index][part] for index, part in bucket]
        span = slice(self._place, self._place + sum(map(len, vectors)))
        self._place = span.stop
        with torch.no_grad():
            self._begun.append(self._begin_sum(bucket, vectors, span))

    def _begin_sum(self, bucket: Bucket, vectors: list[torch.Tensor], span: slice) -> BucketSum:
        """Starts the sum of a bucket, exact or by the compression's method, and returns it."""
        total, compression = self._total[span], self._compression
        if compression is None:
            return ExactSum(vectors, total)
        lost = self._spare[span]
        _add_residual(vectors, self._residual[span], compression.scale, lost)
        if isinstance(compression.kind, str):
            return RoundedSum(lost, total, compression.kind, self._sharing)
        shapes = [self.shapes[index] for index, _ in bucket]
        parts = self._split_low_rank(compression.kind, shapes, lost, total)
        return LowRankSum(*parts, self._sharing)

    def _split_low_rank(
        self, low_rank: LowRank, shapes: Sequence[Any], lost: torch.Tensor, total: torch.Tensor
    ) -> tuple[list[SumOfMatrix], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Returns a bucket's matrices to compress, and its other vectors, each with its sum."""
        sizes = [math.prod(shape) for shape in shapes]
        matrices: list[SumOfMatrix] = []
        whole: list[tuple[torch.Tensor, torch.Tensor]] = []
        for shape, part, out in zip(shapes, lost.split(sizes), total.split(sizes), strict=True):
            matrix = low_rank.matrix_shape(shape)
            if matrix is None:
                whole.append((part, out))
                continue
            start, self._factors = self._factors, self._factors + low_rank.rank * matrix[1]
            factors = [
                vector[start : self._factors].view(low_rank.rank, -1)
                for vector in (self._residual, self._spare)
            ]
            matrices.append(SumOfMatrix(part.view(matrix), out.view(matrix), *factors))
        return matrices, whole

    def _share_next(self) -> None:
        """Starts the second round of the oldest bucket that is still in its first round."""
        with torch.no_grad():
            self._begun[self._num_shared].share()
        self._num_shared += 1


def _add_residual(
    vectors: list[torch.Tensor], residual: torch.Tensor, scale: Any, out: torch.Tensor
) -> None:
    sizes = [len(vector) for vector in vectors]
    for vector, old_residual, exact in zip(
        vectors, residual.split(sizes), out.split(sizes), strict=True
    ):
        if isinstance(scale, torch.Tensor):
            torch.addcdiv(old_residual, vector, scale, out=exact)
        else:
            torch.add(old_residual, vector, alpha=1.0 / scale, out=exact)


def _cut(sizes: Sequence[int]) -> list[Bucket]:
    """Returns buckets of parts of vectors, with a fixed number of bytes for each rank."""
    capacity = min(dist.get_world_size(), _MOST_PARTS) * _PART_BYTES // 4
    vectors = [Piece(index, 0, size) for index, size in enumerate(sizes)]
    return [
        [(piece.weight, slice(piece.start, piece.stop)) for piece in pieces]
        for (pieces,) in cut_pieces([vectors], capacity)
    ]


def _group(sizes: Sequence[int]) -> list[Bucket]:
    """Returns buckets of whole vectors, each of at least `_PART_BYTES`."""
    from_last = reversed(range(len(sizes)))
    groups = group_by_bytes(from_last, lambda index: 4 * sizes[index], _PART_BYTES)
    return [[(index, slice(0, sizes[index])) for index in group] for group in groups]


class translate_peer_errors(PeerErrorTranslator):  # noqa: N801
    """A context manager that turns errors of gloo and NCCL into `PeerLostError`."""

    engine = "torch.distributed"

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns True if another process may have caused an error."""
        return isinstance(error, RuntimeError)  # gloo and NCCL raise nothing else.
