"""Sums of gradient buckets over processes, each while other gradients are computed."""

import math
from typing import Any, Protocol

import torch
import torch.distributed as dist


class BucketSum(Protocol):
    """The base class of a running sum of one gradient bucket over all ranks.

    It starts when it is created.
    """

    def is_received(self) -> bool:
        """Returns True if `share` can start the second round without waiting."""

    def share(self) -> None:
        """Starts the second round of communication: sends this rank's part to all."""

    def finish(self) -> None:
        """Waits for the sums of the bucket, and writes them to their place."""


class ExactSum:
    """The exact sum of one gradient bucket over all ranks, written to the vector `total`."""

    def __init__(self, vectors: list[torch.Tensor], total: torch.Tensor) -> None:
        torch.cat(vectors, out=total)
        self._work: Any = dist.all_reduce(total, async_op=True)

    def is_received(self) -> bool:
        """Returns `False`, because an exact sum has no second round."""
        return False

    def share(self) -> None:
        """Does nothing, because an exact sum has no second round."""

    def finish(self) -> None:
        """Waits until the sums of the bucket are written."""
        self._work.wait()


gather_rows = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""Function of a tensor for the rows of all ranks and this one's. PyTorch 2.13 renamed it."""


class RoundedSum:
    """The sum of one gradient bucket over all ranks, sent in half precision.

    Each rank adds up one part of the bucket in float32, and sends the result to all by the process
    group `sharing`. `lost` is the vector to sum; afterwards it holds what rounding lost.
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
        """Returns True if the part that this rank sums has come from all ranks."""
        return bool(self._work.is_completed())

    def share(self) -> None:
        """Sums the part of this rank, and starts sending the result to all ranks."""
        self._work.wait()
        total = _widen(self._received[:1])
        for rank in range(1, self._world_size):
            total.add_(_widen(self._received[rank : rank + 1]))
        sent = _round(total, self._dtype)
        self._received = torch.empty_like(self._received)
        self._work = gather_rows(
            self._received.view(torch.uint8),
            sent.view(torch.uint8),
            group=self._sharing,
            async_op=True,
        )
        lost_part = self._lost[dist.get_rank() * self._length :][: self._length]
        lost_part.add_(total.sub_(_widen(sent))[0, : len(lost_part)])

    def finish(self) -> None:
        """Waits for all parts, and writes the sums of the bucket."""
        self._work.wait()
        is_scaled = self._dtype == torch.float16
        flat = self._flatten(self._received) if is_scaled else self._received.view(-1)
        self._total.copy_(flat[: len(self._total)])  # `copy_` converts bfloat16.

    def _flatten(self, rows: torch.Tensor) -> torch.Tensor:
        """Joins received rows into one float32 vector, without their padding."""
        return _widen(rows).reshape(-1)[: len(self._lost)]


class SumOfMatrix:
    """The sum of one gradient matrix over all ranks, sent as two thin matrices (low rank).

    Its products with thin matrices are written in the way that is several times as fast as others.
    `lost` is the matrix to sum; afterwards it holds what was not sent. `factor` is `Q^T`, and
    `next_factor` gets the `Q^T` of the next step. All are float32.
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
        """Returns the first thin matrix: the gradient matrix times the factor."""
        return torch.nn.functional.linear(self._lost, self._factor)

    def answer(self, projected: torch.Tensor) -> torch.Tensor:
        """Returns this rank's second thin matrix, from the sum of all ranks' first ones."""
        self._base = _orthonormal(projected)
        self._own = self._base.T @ self._lost
        return self._own

    def subtract(self) -> None:
        """Subtracts from the gradient matrix the part that is sent, which leaves the residual."""
        self._lost.addmm_(self._base, self._own, alpha=-1.0)

    def finish(self, answer: torch.Tensor) -> None:
        """Writes the summed matrix and the next factor, from the sum of second thin matrices."""
        self._total.zero_().addmm_(self._base, answer)
        self._next_factor.copy_(_orthonormal(answer.T).T)


class LowRankSum:
    """The sum of one gradient bucket over all ranks, with matrices sent as two thin ones.

    `whole` are pairs of float32 vectors: one that is sent as it is, and one for its sum.
    """

    def __init__(
        self,
        matrices: list[SumOfMatrix],
        whole: list[tuple[torch.Tensor, torch.Tensor]],
        sharing: Any,
    ) -> None:
        self._matrices, self._whole, self._sharing = matrices, whole, sharing
        # The basis may be rounded: what it misses is sent in a later step.
        self._first = _Joined([matrix.project().to(torch.bfloat16) for matrix in matrices], None)

    def is_received(self) -> bool:
        """Returns True if the first thin matrices of all ranks have been summed."""
        return self._first.is_summed()

    def share(self) -> None:
        """Starts summing the second thin matrices, which depend on the sums of the first."""
        answers = [
            matrix.answer(summed.float())
            for matrix, summed in zip(self._matrices, self._first.wait(), strict=True)
        ]
        vectors = [vector for vector, _ in self._whole]
        self._second = _Joined([*answers, *vectors], self._sharing)
        for matrix in self._matrices:
            matrix.subtract()
        for vector in vectors:
            vector.zero_()

    def finish(self) -> None:
        """Writes the sums of the bucket, and the factors of the next step."""
        sums = iter(self._second.wait())
        for matrix in self._matrices:
            matrix.finish(next(sums))
        for (_, total), summed in zip(self._whole, sums, strict=True):
            total.copy_(summed)


class _Joined:
    """The running sum of a list of tensors, perhaps empty, over all ranks as one vector."""

    def __init__(self, tensors: list[torch.Tensor], group: Any) -> None:
        self._shapes = [tensor.shape for tensor in tensors]
        self._work: Any = None
        if tensors:
            self._sum = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._work = dist.all_reduce(self._sum, group=group, async_op=True)

    def is_summed(self) -> bool:
        """Returns True if the sum over all ranks has arrived."""
        return self._work is None or bool(self._work.is_completed())

    def wait(self) -> list[torch.Tensor]:
        """Waits for the sum over all ranks, and returns it as tensors."""
        if self._work is None:
            return []
        self._work.wait()
        parts = self._sum.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Returns an orthonormal basis of a matrix's columns; not finite if the columns are not."""
    return torch.linalg.qr(columns).Q + 0.0 * columns


def _round(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounds rows to half precision, for sending. A float16 row starts with its float32 scale."""
    if dtype == torch.bfloat16:
        return rows.to(dtype)
    largest = torch.linalg.vector_norm(rows, math.inf).reshape(1)
    scale = torch.ldexp(torch.ones_like(largest), 15 - torch.frexp(largest).exponent)
    # Numbers that are not finite have no exponent, and stay so.
    scale = torch.where(largest.isfinite(), scale.clamp(2.0**-126, 2.0**126), 1.0)
    heads = scale.view(dtype).expand(len(rows), -1)
    return torch.cat([heads, (rows * scale).to(dtype)], dim=1)


def _widen(rows: torch.Tensor) -> torch.Tensor:
    if rows.dtype == torch.bfloat16:
        return rows.float()
    heads = rows[:, :2].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return rows[:, 2:].float().div_(heads)
