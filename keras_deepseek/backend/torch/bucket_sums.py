"""The sum of one bucket of gradients over processes, which goes on while others are computed."""

import math
from typing import Any, Protocol

import torch
import torch.distributed as dist


class BucketSum(Protocol):
    """The sum of one bucket over all ranks; it begins when it is made."""

    def is_received(self) -> bool:
        """Returns whether `share` need not wait."""

    def share(self) -> None:
        """Sends the others what this rank has to add to what they have sent."""

    def finish(self) -> None:
        """Waits for the sums, and writes them."""


class ExactSum:
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


class RoundedSum:
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
        for rank in range(1, self._world_size):
            total.add_(_widen(self._received[rank : rank + 1]))
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


class SumOfMatrix:
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


class LowRankSum:
    """The sum of one bucket over all ranks, of whose matrices two thin ones are sent.

    Args:
        matrices: list of `SumOfMatrix`.
        whole: list of pairs of float32 vectors. What is sent as it is, and where its sum goes.
        sharing: The process group by which the second of the thin matrices is summed.
    """

    def __init__(
        self,
        matrices: list[SumOfMatrix],
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
