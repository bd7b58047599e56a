"""Processes that train together by `torch.distributed`: over gloo, and NCCL between GPUs."""

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import keras
import torch
import torch.distributed as dist

from keras_deepseek.artifacts.network_address import is_loopback, parse_address
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.arrivals import Arrivals
from keras_deepseek.backend.meeting import meet
from keras_deepseek.backend.network_interface import find_interface
from keras_deepseek.backend.processes import (
    ComputePart,
    Processes,
    RemoteReplicas,
    Rounding,
    check_place,
    check_same_shapes,
    lost_peer_error,
)

BeginSum = Callable[[list[torch.Tensor], slice, torch.Tensor], Any]
"""From the vectors of a bucket, its place among all numbers and that of all sums, to its sum."""

_SEEDS = 2**62
_PART_BYTES, _MOST_PARTS = 2 * 2**20, 32
"""Of a bucket: so much in float32 is added up by each rank. Smaller messages take gloo's threads
longer; of larger buckets fewer are under way while others are computed."""


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
        with _listening_towards(coordinator), _naming_lost_peers("join the others"):
            return TorchProcesses(timeout)
    # Torchrun listens at that address already, with a store for the ranks that it has started.
    is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not is_torchrun:
        meet(coordinator, world_size, rank, join_timeout)
    with _listening_towards(coordinator), _naming_lost_peers("join the others"):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=None if is_torchrun else _open_store(coordinator, world_size, rank, join_timeout),
            world_size=world_size,
            rank=rank,
            timeout=timedelta(seconds=timeout),
        )
        return TorchProcesses(timeout)


class TorchProcesses:
    """The default process group of `torch.distributed`, which sums and broadcasts.

    Args:
        timeout: float. Seconds to wait for a process that does not answer.
    """

    def __init__(self, timeout: float) -> None:
        # What ranks have added is sent by a group of its own, out of turn with what they are to.
        self._sharing = dist.new_group(timeout=timedelta(seconds=timeout))
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.replicas: RemoteReplicas | None = self
        self.is_compilable = True
        self._known: set[Any] = set()  # The shapes that all ranks are known to sum.
        self._sums: _GradientSums | None = None  # Of the last step: its memory serves the next.
        self._spare = torch.empty(0)
        self._waiting: tuple[Any, torch.Tensor] | None = None

    def count(self, num_rows: Any) -> Any:
        """Returns the number of the rows of all, a scalar."""
        return self._sum_scalars([num_rows])[0]

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the sums of what all ranks compute."""

        def begin(vectors: list[torch.Tensor], place: slice, total: torch.Tensor) -> _ExactSum:
            return _ExactSum(vectors, total[place])

        return self._sum(compute, batch, variables, begin)

    def sum_rounded(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        rounding: Rounding,
    ) -> tuple[list[Any], list[Any], list[Any], Callable[[], None]]:
        """Returns the sums of what all ranks compute, those of gradients rounded.

        Each rank adds one part of every bucket, in float32: a ring would round at each stop.
        """
        residual = rounding.residual.value.detach()
        if self._spare.shape != residual.shape or self._spare.device != residual.device:
            self._spare = torch.empty_like(residual)
        lost = self._spare

        def begin(vectors: list[torch.Tensor], place: slice, total: torch.Tensor) -> _RoundedSum:
            return _RoundedSum(
                vectors,
                residual[place],
                lost[place],
                total[place],
                rounding.scale,
                rounding.dtype,
                self._sharing,
            )

        def keep() -> None:
            # A copy would take as long as an update does, and so would memory that is new.
            self._spare, rounding.residual.value.data = residual, lost

        return *self._sum(compute, batch, variables, begin), keep

    def _sum(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        begin: BeginSum,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        scalars, finish = compute(self.rank, batch)
        found = self._sum_scalars(scalars)
        if self._sums is None or not self._sums.is_for(variables):
            self._sums = _GradientSums(variables)
        sums = self._sums
        sums.start(begin)
        with _naming_lost_peers("sum the gradients"):
            self._check_shapes(sums.shapes)
        # An error of the backward pass is one, and no peer's that is lost.
        more, gradients = finish(found, sums.receive)
        for index in reversed(range(len(gradients))):
            sums.receive(index, gradients[index])
        counts = self._sum_scalars(more)
        with _naming_lost_peers("sum the gradients"):
            return found, counts, sums.finish()

    def _sum_scalars(self, scalars: Sequence[Any]) -> list[Any]:
        """Returns the sums of small tensors over all ranks, added in float64."""
        with torch.no_grad(), _naming_lost_peers("sum the gradients"):
            self._check_shapes([tensor.shape for tensor in scalars])
            exact = torch.cat([tensor.detach().reshape(-1).double() for tensor in scalars])
            dist.all_reduce(exact)
            return _split(exact.to(torch.float32), scalars)

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


class _GradientSums:
    """The sums of gradients over all ranks, which begin while others are still computed.

    Gradients stand from the last to the first, as the backward pass finds most of them, and are cut
    into buckets. All ranks begin these in one order.

    Args:
        variables: What the gradients are by.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self.shapes = [tuple(variable.shape) for variable in variables]
        sizes = [math.prod(shape) for shape in self.shapes]
        self._sizes_from_last = sizes[::-1]
        self._buckets = list(_cut(sizes))
        self._groups = [[index for index, _ in bucket] for bucket in self._buckets]
        device = variables[0].value.device if variables else "cpu"
        self._total = torch.empty(sum(sizes), device=device)
        self._is_early = self._total.device.type == "cpu"

    def is_for(self, variables: Sequence[keras.Variable]) -> bool:
        """Returns whether gradients by such variables can be summed."""
        shapes = [tuple(variable.shape) for variable in variables]
        device = variables[0].value.device if variables else self._total.device
        return shapes == self.shapes and device == self._total.device

    def start(self, begin: BeginSum) -> None:
        """Begins a step, whose sums take the place of those of the last one.

        Args:
            begin: `BeginSum`.
        """
        self._begin = begin
        self._vectors: dict[int, torch.Tensor] = {}
        self._begun: list[_ExactSum | _RoundedSum] = []
        self._stop = 0  # Where the last bucket that was begun ends.
        self._num_shared = 0
        self._arrivals = Arrivals(self._groups, self._begin_bucket)

    def receive(self, index: int, gradient: torch.Tensor) -> None:
        """Begins the sums of buckets that are whole with it; it may be told of one twice."""
        if index in self._vectors:
            return
        self._vectors[index] = gradient.detach().reshape(-1)
        with _naming_lost_peers("sum the gradients"):  # Of the backward pass nobody else does.
            self._arrivals.add(index)
            # NCCL needs one order of all that is sent; gloo has one for each group.
            while self._is_early and self._num_shared < len(self._begun):
                if not self._begun[self._num_shared].is_received():
                    break
                self._share_next()

    def finish(self) -> list[torch.Tensor]:
        """Returns the sums, once all gradients have come."""
        while self._num_shared < len(self._begun):
            self._share_next()
        for each in self._begun:
            each.finish()
        self._begun, self._vectors = [], {}
        vectors = self._total.split(self._sizes_from_last)[::-1]
        return [vector.view(shape) for vector, shape in zip(vectors, self.shapes, strict=True)]

    def _begin_bucket(self, number: int) -> None:
        bucket = self._buckets[number]
        vectors = [self._vectors[index][place] for index, place in bucket]
        start, self._stop = self._stop, self._stop + sum(map(len, vectors))
        with torch.no_grad():
            self._begun.append(self._begin(vectors, slice(start, self._stop), self._total))

    def _share_next(self) -> None:
        with torch.no_grad():
            self._begun[self._num_shared].share()
        self._num_shared += 1


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
        vectors: list of vectors.
        residual: float32 vector. What was not sent before, as long as all of them together.
        lost: float32 vector. Where what is not sent now is written to.
        total: float32 vector. Where the sums are written to.
        scale: Scalar. What the vectors are divided by.
        dtype: string. What is sent.
        sharing: The process group by which ranks send each other what they have added.
    """

    def __init__(
        self,
        vectors: list[torch.Tensor],
        residual: torch.Tensor,
        lost: torch.Tensor,
        total: torch.Tensor,
        scale: Any,
        dtype: str,
        sharing: Any,
    ) -> None:
        sizes = [len(vector) for vector in vectors]
        for vector, before, exact in zip(
            vectors, residual.split(sizes), lost.split(sizes), strict=True
        ):
            if isinstance(scale, torch.Tensor):
                torch.addcdiv(before, vector, scale, out=exact)
            else:
                torch.add(before, vector, alpha=1.0 / scale, out=exact)
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


def _cut(sizes: Sequence[int]) -> Iterator[list[tuple[int, slice]]]:
    """Yields parts of vectors in groups, of as many bytes as all ranks are to add up."""
    bucket: list[tuple[int, slice]] = []
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
def _listening_towards(coordinator: str) -> Iterator[None]:
    """Makes gloo listen on the interface by which the processes meet, until the block ends.

    By itself it takes that of the machine's name, which on many a machine is loopback's.
    """
    name = "GLOO_SOCKET_IFNAME"
    interface = find_interface(*parse_address("`coordinator`", coordinator))
    if interface is None or name in os.environ:
        yield
        return
    os.environ[name] = interface
    try:
        yield
    finally:
        del os.environ[name]
