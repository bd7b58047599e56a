"""Processes that train together by `torch.distributed`: over gloo, and NCCL between GPUs."""

import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import keras
import torch
import torch.distributed as dist

from keras_deepseek.artifacts.network_address import is_loopback, parse_address
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.meeting import meet
from keras_deepseek.backend.processes import (
    Processes,
    RemoteReplicas,
    Rounding,
    check_place,
    check_same_shapes,
    lost_peer_error,
)

_SEEDS = 2**62
_BUCKET_BYTES = 4 * 2**20  # Gloo sums one while the next is copied together.
_PART_BYTES, _MOST_PARTS = 2 * 2**20, 32
"""Of a bucket that is rounded: so much in float32 is added up by each rank. Smaller messages take
gloo's threads longer; of larger buckets fewer are under way while others are rounded."""


def count_processes() -> int:
    """Returns how many processes the framework's engine runs in already."""
    return int(dist.get_world_size()) if dist.is_initialized() else 1


def join_processes(
    coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
) -> Processes:
    """Returns the processes that train together, once all of them are there."""
    if dist.is_initialized():
        found = dist.get_world_size(), dist.get_rank()
        check_place("torch.distributed", found, (world_size, rank))
        return TorchProcesses()
    # Torchrun listens at that address already, with a store for the ranks that it has started.
    is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_torchrun:
        meet(coordinator, world_size, rank, join_timeout)
    with _loopback_only(coordinator), _naming_lost_peers("join the others"):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=None if is_torchrun else _open_store(coordinator, world_size, rank, join_timeout),
            world_size=world_size,
            rank=rank,
            timeout=timedelta(seconds=timeout),
        )
    return TorchProcesses()


class TorchProcesses:
    """The default process group of `torch.distributed`, which sums and broadcasts."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.replicas: RemoteReplicas | None = self
        self.is_compilable = True
        self._known: set[Any] = set()  # The shapes that all ranks are known to sum.
        self._waiting: tuple[Any, torch.Tensor] | None = None

    def count(self, num_rows: Any) -> Any:
        """Returns the number of the rows of all, a scalar."""
        return self._sum([num_rows], [])[0][0]

    def sum(
        self, compute: Callable[[int, Any], tuple[list[Any], list[Any]]], batch: Any
    ) -> tuple[list[Any], list[Any]]:
        """Returns the sums of what all ranks compute."""
        return self._sum(*compute(self.rank, batch))

    def _sum(self, scalars: Sequence[Any], gradients: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the sums over all ranks: those of small tensors in float64."""
        with torch.no_grad(), _naming_lost_peers("sum the gradients"):
            self._check_shapes([tensor.shape for tensor in (*scalars, *gradients)])
            exact = torch.cat([tensor.detach().reshape(-1).double() for tensor in scalars])
            work = dist.all_reduce(exact, async_op=True)
            sums = [_start_sum(bucket) for bucket in _buckets(gradients)]
            work.wait()
            found = _split(exact.to(torch.float32), scalars)
            return found, [tensor for finish in sums for tensor in finish()]

    def sum_rounded(
        self,
        compute: Callable[[int, Any], tuple[list[Any], list[Any]]],
        batch: Any,
        rounding: Rounding,
    ) -> tuple[list[Any], list[Any], Callable[[], None]]:
        """Returns the sums of what all ranks compute, and rounded means of the gradients.

        Each rank adds one part of every bucket, in float32: a ring would round at each stop.
        """
        scalars, gradients = compute(self.rank, batch)
        found, _ = self._sum(scalars, [])
        with torch.no_grad(), _naming_lost_peers("sum the gradients"):
            self._check_shapes([tensor.shape for tensor in gradients])
            residual = rounding.residual.value.detach()
            lost = torch.empty_like(residual)
            unit = rounding.unit(found)
            flat = [tensor.reshape(-1) for tensor in gradients]
            sums, start = [], 0
            for parts in _cut(flat):
                size = sum(map(len, parts))
                place = slice(start, start + size)
                start += size
                sums.append(_RoundedSum(parts, residual[place], lost[place], unit, rounding.dtype))
            for each in sums:  # All are on their way before the first is waited for.
                each.share()
            for each in sums:
                each.finish()
            summed = [
                vector.view(tensor.shape) for vector, tensor in zip(flat, gradients, strict=True)
            ]

        def keep() -> None:
            rounding.residual.value.data = lost  # A copy would take as long as an update does.

        return found, summed, keep

    @contextlib.contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        """Makes PyTorch's shared generator differ by rank until the block ends.

        Dropout draws from it, a number for each value, and the ranks may have unequal rows.
        """
        seed = int(torch.randint(_SEEDS, (), device="cpu"))  # The same on all ranks.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((seed + self.rank) % _SEEDS)
            yield

    def broadcast(self, value: Any) -> Any:
        """Returns the value of rank 0, which can be pickled."""
        values = [value]
        with _naming_lost_peers("send what rank 0 knows"):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Gives variables the values that they have on rank 0."""
        with torch.no_grad(), _naming_lost_peers("send the variables of rank 0"):
            self._check_shapes([tuple(variable.shape) for variable in variables])
            for variable in variables:
                value = variable.value.detach().clone()
                dist.broadcast(value, src=0)
                variable.assign(value)

    def gather(self, array: Array) -> list[Array]:
        """Returns the arrays of all ranks, in their order."""
        found: list[Any] = [None] * self.world_size
        with _naming_lost_peers("gather the outputs"):
            dist.all_gather_object(found, array)
        return found

    def whole_outputs(self, model: keras.Model) -> contextlib.AbstractContextManager[None]:
        """Does nothing: each rank predicts rows of its own."""
        return contextlib.nullcontext()

    def agree(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns which wishes any rank had when it called this function the last time."""
        before = self._wait(len(wishes))
        found = torch.tensor(wishes, dtype=torch.uint8)
        with _naming_lost_peers("agree on whether to stop"):
            self._waiting = dist.all_reduce(found, dist.ReduceOp.MAX, async_op=True), found
        return before

    def agree_now(self, wishes: Sequence[bool]) -> list[bool]:
        """Returns which wishes any rank has, now or the last time."""
        before = self.agree(wishes)
        return [a or b for a, b in zip(before, self._wait(len(wishes)), strict=True)]

    def _wait(self, count: int) -> list[bool]:
        if self._waiting is None:
            return [False] * count
        (work, found), self._waiting = self._waiting, None
        with _naming_lost_peers("agree on whether to stop"):
            work.wait()
        return [bool(each) for each in found]

    def _check_shapes(self, shapes: Sequence[Any]) -> None:
        """Raises an error where ranks are about to sum different things, which would hang."""
        key = tuple(tuple(shape) for shape in shapes)
        if key in self._known:
            return
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, key)
        check_same_shapes(self.rank, found)
        self._known.add(key)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yields the tensors in groups of one dtype and device, each of so many bytes."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        fits = bucket and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (fits and size < _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _start_sum(bucket: list[torch.Tensor]) -> Any:
    """Begins to sum tensors, and returns a function that waits for the sums and returns them."""
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    work = dist.all_reduce(flat, async_op=True)

    def finish() -> list[torch.Tensor]:
        work.wait()
        return _split(flat, bucket)

    return finish


# PyTorch 2.13 has given it another name.
_gather_rows = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class _RoundedSum:
    """The sum of one bucket over all ranks, rounded on its way to who adds it up, and from there.

    Args:
        parts: list of vectors. They are added up, and the means are written to them.
        residual: float32 vector. What was not sent before, as long as all parts together.
        lost: float32 vector. Where what is not sent now is written to.
        unit: Scalar tensor. What the sums are divided by.
        dtype: string. What is sent.
    """

    def __init__(
        self,
        parts: list[torch.Tensor],
        residual: torch.Tensor,
        lost: torch.Tensor,
        unit: torch.Tensor,
        dtype: str,
    ) -> None:
        sizes = [len(part) for part in parts]
        for part, before, exact in zip(
            parts, residual.split(sizes), lost.split(sizes), strict=True
        ):
            torch.addcdiv(before, part.float(), unit, out=exact)
        self._parts, self._sizes, self._lost = parts, sizes, lost
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

    def share(self) -> None:
        """Adds up the part that this rank is to add, and begins to send it to all."""
        self._work.wait()
        total = _widen(self._received[:1])
        for row in self._received[1:].split(1):
            total.add_(_widen(row))
        sent = _round(total, self._dtype)
        self._received = torch.empty_like(self._received)
        self._work = _gather_rows(
            self._received.view(torch.uint8), sent.view(torch.uint8), async_op=True
        )
        own = self._lost[dist.get_rank() * self._length :][: self._length]
        own.add_(total.sub_(_widen(sent))[0, : len(own)])

    def finish(self) -> None:
        """Writes the means."""
        self._work.wait()
        is_scaled = self._dtype == torch.float16
        found = self._flatten(self._received) if is_scaled else self._received.view(-1)
        found = found[: len(self._lost)]
        for part, mean in zip(self._parts, found.split(self._sizes), strict=True):
            part.copy_(mean)  # It widens what is bfloat16.

    def _flatten(self, rows: torch.Tensor) -> torch.Tensor:
        return _widen(rows).reshape(-1)[: len(self._lost)]


def _cut(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yields views of vectors in groups, of as many bytes as all ranks are to add up."""
    bucket: list[torch.Tensor] = []
    left = most = min(dist.get_world_size(), _MOST_PARTS) * _PART_BYTES // 4
    for tensor in tensors:
        start = 0
        while start < len(tensor):
            part = tensor[start : start + left]
            bucket.append(part)
            start, left = start + len(part), left - len(part)
            if not left:
                yield bucket
                bucket, left = [], most
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


def _split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@contextlib.contextmanager
def _naming_lost_peers(purpose: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # All that gloo and NCCL raise.
        raise lost_peer_error(purpose, "torch.distributed", error) from error


def _open_store(coordinator: str, world_size: int, rank: int, timeout: float) -> dist.Store:
    """Returns the store of rank 0, which listens on loopback alone where the coordinator is."""
    host, port = parse_address("`coordinator`", coordinator)
    listener = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host if is_loopback(host) else "", port), family=family)
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=timeout),
        master_listen_fd=None if listener is None else listener.detach(),
    )


@contextlib.contextmanager
def _loopback_only(coordinator: str) -> Iterator[None]:
    """Makes gloo listen on loopback alone, where the processes meet there, until the block ends."""
    name = "GLOO_SOCKET_IFNAME"
    host, _ = parse_address("`coordinator`", coordinator)
    if name in os.environ or not is_loopback(host):
        yield
        return
    os.environ[name] = "lo0" if sys.platform == "darwin" else "lo"
    try:
        yield
    finally:
        del os.environ[name]
