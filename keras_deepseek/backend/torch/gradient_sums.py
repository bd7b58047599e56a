"""The sums of gradients over processes, exact or compressed, while others are still computed."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import keras
import torch
import torch.distributed as dist

from keras_deepseek.backend.arrivals import Arrivals
from keras_deepseek.backend.gradient_compression import Compression, LowRank
from keras_deepseek.backend.processes import NamingLostPeers

Bucket = list[tuple[int, slice]]
"""Gradients by their index, and the part of each that is summed together with the others."""

_PART_BYTES, _MOST_PARTS = 2 * 2**20, 32
"""Of a bucket: so much in float32 is added up by each rank. Smaller messages take gloo's threads
longer; of larger buckets fewer are under way while others are computed."""


class GradientSums:
    """The sums of gradients over all ranks, which begin while others are still computed.

    Gradients stand from the last to the first, as the backward pass finds most of them, and are cut
    into buckets. All ranks begin these in one order.

    Args:
        variables: What the gradients are by.
        sharing: The process group for what ranks send each other in answer to what they were sent.
        low_rank: `LowRank`, whose buckets hold whole gradients, or `None`.
    """

    def __init__(
        self, variables: Sequence[keras.Variable], sharing: Any, low_rank: LowRank | None
    ) -> None:
        self.shapes = [tuple(variable.shape) for variable in variables]
        sizes = [math.prod(shape) for shape in self.shapes]
        self._low_rank = low_rank
        self._sharing = sharing
        self._sizes_from_last = sizes[::-1]
        self._buckets = list(_cut(sizes) if low_rank is None else _group(sizes))
        device = variables[0].value.device if variables else "cpu"
        self._total = torch.empty(sum(sizes), device=device)
        self._spare = torch.empty(0)
        self._is_early = self._total.device.type == "cpu"

    def is_for(self, variables: Sequence[keras.Variable], low_rank: LowRank | None) -> bool:
        """Returns whether gradients by such variables can be summed, in this way."""
        shapes = [tuple(variable.shape) for variable in variables]
        device = variables[0].value.device if variables else self._total.device
        same = shapes == self.shapes and device == self._total.device
        return same and low_rank == self._low_rank

    def start(self, compression: Compression | None) -> None:
        """Begins a step, whose sums take the place of those of the last one.

        Args:
            compression: `Compression`, or `None` for exact sums.
        """
        self._compression = compression
        if compression is not None:
            self._residual = compression.residual.value.detach()
            # Memory that is new would take as long as an update does.
            if self._spare.shape != self._residual.shape or not self._is_early:
                self._spare = torch.empty_like(self._residual)
        self._vectors: dict[int, torch.Tensor] = {}
        self._begun: list[_Sum] = []
        self._place = 0  # Where the last bucket that was begun ends.
        self._factors = len(self._total)  # Likewise of the factors, which stand behind all.
        self._num_shared = 0
        self._arrivals = Arrivals(
            [[index for index, _ in bucket] for bucket in self._buckets], self._begin_bucket
        )

    def receive(self, index: int, gradient: torch.Tensor) -> None:
        """Begins the sums of buckets that are whole with it; it may be told of one twice."""
        if index in self._vectors:
            return
        self._vectors[index] = gradient.detach().reshape(-1)
        with LostPeers("sum the gradients"):  # Of the backward pass nobody else does.
            self._arrivals.add(index)
            # NCCL needs one order of all that is sent; gloo has one for each group.
            while self._is_early and self._num_shared < len(self._begun):
                if not self._begun[self._num_shared].is_received():
                    break
                self._share_next()

    def finish(self) -> list[torch.Tensor]:
        """Returns the sums, once all gradients have come."""
        with torch.no_grad(), LostPeers("sum the gradients"):
            while self._num_shared < len(self._begun):
                self._share_next()
            for each in self._begun:
                each.finish()
        self._begun, self._vectors = [], {}
        vectors = self._total.split(self._sizes_from_last)[::-1]
        return [vector.view(shape) for vector, shape in zip(vectors, self.shapes, strict=True)]

    def keep(self) -> None:
        """Makes what compression has taken in this step the residual of the next."""
        if self._compression is not None:
            # A copy would take as long as an update does.
            self._compression.residual.value.data, self._spare = self._spare, self._residual

    def _begin_bucket(self, number: int) -> None:
        bucket = self._buckets[number]
        vectors = [self._vectors[index][part] for index, part in bucket]
        place = slice(self._place, self._place + sum(map(len, vectors)))
        self._place = place.stop
        with torch.no_grad():
            self._begun.append(self._begin_sum(bucket, vectors, place))

    def _begin_sum(self, bucket: Bucket, vectors: list[torch.Tensor], place: slice) -> "_Sum":
        total, compression = self._total[place], self._compression
        if compression is None:
            return _ExactSum(vectors, total)
        lost = self._spare[place]
        _add_residual(vectors, self._residual[place], compression.scale, lost)
        if isinstance(compression.kind, str):
            return _RoundedSum(lost, total, compression.kind, self._sharing)
        shapes = [self.shapes[index] for index, _ in bucket]
        parts = self._split_low_rank(compression.kind, shapes, lost, total)
        return _LowRankSum(*parts, self._sharing)

    def _split_low_rank(
        self, low_rank: LowRank, shapes: Sequence[Any], lost: torch.Tensor, total: torch.Tensor
    ) -> tuple[list["_Matrix"], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Returns the matrices of a bucket, and what is sent as it is, with where the sums go."""
        sizes = [math.prod(shape) for shape in shapes]
        matrices: list[_Matrix] = []
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
            matrices.append(_Matrix(part.view(matrix), out.view(matrix), *factors))
        return matrices, whole

    def _share_next(self) -> None:
        with torch.no_grad():
            self._begun[self._num_shared].share()
        self._num_shared += 1


class _Sum(Protocol):
    """The sum of one bucket over all ranks; it begins when it is made."""

    def is_received(self) -> bool:
        """Returns whether `share` need not wait."""

    def share(self) -> None:
        """Sends the others what this rank has to add to what they have sent."""

    def finish(self) -> None:
        """Waits for the sums, and writes them."""


class _ExactSum:
    """The sum of one bucket over all ranks.

    Args:
        vectors: list of vectors.
        total: Where their sums are written to, one behind the other.
    """

    def __init__(self, vectors: list[torch.Tensor], total: torch.Tensor) -> None:
        torch.cat(vectors, out=total)
        self._work: Any = dist.all_reduce(total, async_op=True)

    def is_received(self) -> bool:
        """Returns `False`: nothing is to be shared before it ends."""
        return False

    def share(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Waits for the sums."""
        self._work.wait()


# PyTorch 2.13 has given it another name.
_gather_rows = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class _RoundedSum:
    """The sum of one bucket over all ranks, rounded on its way to who adds it up, and from there.

    Args:
        lost: float32 vector. What is to be summed, and then what of it was not sent.
        total: float32 vector. Where the sums are written to.
        dtype: string. What is sent.
        sharing: The process group by which ranks send each other what they have added.
    """

    def __init__(self, lost: torch.Tensor, total: torch.Tensor, dtype: str, sharing: Any) -> None:
        self._lost, self._total, self._sharing = lost, total, sharing
        self._dtype = getattr(torch, dtype)
        self._world_size = dist.get_world_size()
        self._length = -(-len(lost) // self._world_size)
        rows = lost
        if padding := self._world_size * self._length - len(lost):
            rows = torch.nn.functional.pad(lost, (0, padding))
        sent = _round(rows.view(self._world_size, self._length), self._dtype)
        self._received = torch.empty_like(sent)
        self._work: Any = dist.all_to_all_single(
            self._received.view(torch.uint8), sent.view(torch.uint8), async_op=True
        )
        lost.sub_(self._flatten(sent))

    def is_received(self) -> bool:
        """Returns whether the part that this rank is to add is there, of all ranks."""
        return bool(self._work.is_completed())

    def share(self) -> None:
        """Adds up the part that this rank is to add, and begins to send it to all."""
        self._work.wait()
        total = _widen(self._received[:1])
        for row in self._received[1:].split(1):
            total.add_(_widen(row))
        sent = _round(total, self._dtype)
        self._received = torch.empty_like(self._received)
        self._work = _gather_rows(
            self._received.view(torch.uint8),
            sent.view(torch.uint8),
            group=self._sharing,
            async_op=True,
        )
        own = self._lost[dist.get_rank() * self._length :][: self._length]
        own.add_(total.sub_(_widen(sent))[0, : len(own)])

    def finish(self) -> None:
        """Writes the sums."""
        self._work.wait()
        is_scaled = self._dtype == torch.float16
        found = self._flatten(self._received) if is_scaled else self._received.view(-1)
        self._total.copy_(found[: len(self._total)])  # It widens what is bfloat16.

    def _flatten(self, rows: torch.Tensor) -> torch.Tensor:
        return _widen(rows).reshape(-1)[: len(self._lost)]


class _Matrix:
    """A matrix of which two thin ones are sent.

    Of the ways to multiply by something thin these are several times as fast as others.

    Args:
        lost: float32 matrix. What is to be summed, and then what of it was not sent.
        total: float32 matrix. Where the sum over all ranks is written to.
        factor: float32 matrix. `Q^T`.
        next_factor: float32 matrix. Where that of the next step is written to.
    """

    def __init__(
        self,
        lost: torch.Tensor,
        total: torch.Tensor,
        factor: torch.Tensor,
        next_factor: torch.Tensor,
    ) -> None:
        self._lost, self._total = lost, total
        self._factor, self._next_factor = factor, next_factor

    def project(self) -> torch.Tensor:
        """Returns the first of the thin matrices."""
        return torch.nn.functional.linear(self._lost, self._factor)

    def answer(self, projected: torch.Tensor) -> torch.Tensor:
        """Returns what this rank adds to the second of the thin matrices.

        Args:
            projected: The sum of the first ones of all ranks.
        """
        self._base = _orthonormal(projected)
        self._own = self._base.T @ self._lost
        return self._own

    def subtract(self) -> None:
        """Takes off the matrix what is sent of it."""
        self._lost.addmm_(self._base, self._own, alpha=-1.0)

    def finish(self, answer: torch.Tensor) -> None:
        """Writes the sum of the matrix, and the factor of the next step.

        Args:
            answer: The sum of the second ones of all ranks.
        """
        self._total.zero_().addmm_(self._base, answer)
        self._next_factor.copy_(_orthonormal(answer.T).T)


class _LowRankSum:
    """The sum of one bucket over all ranks, of whose matrices two thin ones are sent.

    Args:
        matrices: list of `_Matrix`.
        whole: list of pairs of float32 vectors. What is sent as it is, and where its sum goes.
        sharing: The process group by which the second of the thin matrices is summed.
    """

    def __init__(
        self,
        matrices: list[_Matrix],
        whole: list[tuple[torch.Tensor, torch.Tensor]],
        sharing: Any,
    ) -> None:
        self._matrices, self._whole, self._sharing = matrices, whole, sharing
        # Any basis would do, and what it leaves out is sent later: so it may be rounded.
        self._first = _Joined([matrix.project().to(torch.bfloat16) for matrix in matrices], None)

    def is_received(self) -> bool:
        """Returns whether the first of the thin matrices of all ranks are there."""
        return self._first.is_there()

    def share(self) -> None:
        """Begins to sum the second of the thin matrices, by what the first have come to."""
        answers = [
            matrix.answer(found.float())
            for matrix, found in zip(self._matrices, self._first.wait(), strict=True)
        ]
        vectors = [vector for vector, _ in self._whole]
        self._second = _Joined([*answers, *vectors], self._sharing)
        for matrix in self._matrices:
            matrix.subtract()
        for vector in vectors:
            vector.zero_()

    def finish(self) -> None:
        """Writes the sums, and the factors of the next step."""
        found = iter(self._second.wait())
        for matrix in self._matrices:
            matrix.finish(next(found))
        for (_, total), summed in zip(self._whole, found, strict=True):
            total.copy_(summed)


class _Joined:
    """Tensors that are summed over all ranks as one.

    Args:
        tensors: list of tensors, or an empty one.
        group: The process group, or `None` for all that there are.
    """

    def __init__(self, tensors: list[torch.Tensor], group: Any) -> None:
        self._shapes = [tensor.shape for tensor in tensors]
        self._work: Any = None
        if tensors:
            self._sum = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._work = dist.all_reduce(self._sum, group=group, async_op=True)

    def is_there(self) -> bool:
        """Returns whether the sums are."""
        return self._work is None or bool(self._work.is_completed())

    def wait(self) -> list[torch.Tensor]:
        """Returns the sums."""
        if self._work is None:
            return []
        self._work.wait()
        parts = self._sum.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Returns an orthonormal basis of the space of columns; not finite where these are not."""
    return torch.linalg.qr(columns).Q + 0.0 * columns


def _add_residual(
    vectors: list[torch.Tensor], residual: torch.Tensor, scale: Any, out: torch.Tensor
) -> None:
    """Writes the sum of vectors divided by a scale and of a residual, as one vector."""
    sizes = [len(vector) for vector in vectors]
    for vector, before, exact in zip(vectors, residual.split(sizes), out.split(sizes), strict=True):
        if isinstance(scale, torch.Tensor):
            torch.addcdiv(before, vector, scale, out=exact)
        else:
            torch.add(before, vector, alpha=1.0 / scale, out=exact)


def _cut(sizes: Sequence[int]) -> Iterator[Bucket]:
    """Yields parts of vectors in groups, of as many bytes as all ranks are to add up."""
    bucket: Bucket = []
    left = most = min(dist.get_world_size(), _MOST_PARTS) * _PART_BYTES // 4
    for index in reversed(range(len(sizes))):
        start = 0
        while start < sizes[index]:
            stop = min(start + left, sizes[index])
            bucket.append((index, slice(start, stop)))
            start, left = stop, left - (stop - start)
            if not left:
                yield bucket
                bucket, left = [], most
    if bucket:
        yield bucket


def _group(sizes: Sequence[int]) -> Iterator[Bucket]:
    """Yields whole vectors in groups of at least so many bytes."""
    bucket: Bucket = []
    num_weights = 0
    for index in reversed(range(len(sizes))):
        bucket.append((index, slice(0, sizes[index])))
        num_weights += sizes[index]
        if 4 * num_weights >= _PART_BYTES:
            yield bucket
            bucket, num_weights = [], 0
    if bucket:
        yield bucket


def _round(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns rows in half precision; float16 is scaled to its range, by what stands before it."""
    if dtype == torch.bfloat16:
        return rows.to(dtype)
    largest = torch.linalg.vector_norm(rows, math.inf).reshape(1)
    scale = torch.ldexp(torch.ones_like(largest), 15 - torch.frexp(largest).exponent)
    # What is not finite has no exponent to go by, and stays so.
    scale = torch.where(largest.isfinite(), scale.clamp(2.0**-126, 2.0**126), 1.0)
    heads = scale.view(dtype).expand(len(rows), -1)
    return torch.cat([heads, (rows * scale).to(dtype)], dim=1)


def _widen(rows: torch.Tensor) -> torch.Tensor:
    """Returns in float32 what `_round` returned."""
    if rows.dtype == torch.bfloat16:
        return rows.float()
    heads = rows[:, :2].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return rows[:, 2:].float().div_(heads)


class LostPeers(NamingLostPeers):
    """Says in our words that a process is gone, where gloo or NCCL finds it."""

    engine = "torch.distributed"

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns whether an error of the engine may be about another process."""
        return isinstance(error, RuntimeError)  # All that gloo and NCCL raise.
