"""Training on several devices or processes with PyTorch: over gloo, and NCCL between GPUs."""

import atexit
import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import keras
import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist

from keras_deepseek.artifacts.network_address import is_loopback, parse_address
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.variables import raw_value
from keras_deepseek.backend.processes.device_shares import DeviceShares
from keras_deepseek.backend.processes.gradient_compression import Compression, LowRank
from keras_deepseek.backend.processes.processes import (
    ComputePart,
    JoinedProcesses,
    Processes,
    RemoteReplicas,
    Replicas,
    SingleReplica,
    check_rank,
    check_same_shapes,
)
from keras_deepseek.backend.processes.rendezvous import SECRET_VARIABLE, listen_at, rendezvous
from keras_deepseek.backend.processes.weight_parts import Division
from keras_deepseek.backend.protocols.distribution import Distribution
from keras_deepseek.backend.torch.gradient_sums import GradientSums, translate_peer_errors
from keras_deepseek.backend.torch.part_sums import PartSums
from keras_deepseek.backend.torch.replicas import DeviceReplicas


class TorchDistribution(Distribution):
    """Implements `Distribution` by PyTorch."""

    def replicate_over_devices(self, strategy: Any) -> Replicas | None:
        if isinstance(strategy, list):
            return DeviceReplicas(strategy, DeviceShares(len(strategy)))
        return super().replicate_over_devices(strategy)

    def count_processes(self) -> int:
        return int(dist.get_world_size()) if dist.is_initialized() else 1

    def process_rank(self) -> int:
        return int(dist.get_rank()) if dist.is_initialized() else 0

    def read_whole(self, value: Any) -> Array:
        if not isinstance(value, torch.Tensor):
            return np.asarray(value)
        value = value.detach().cpu().contiguous()
        if value.dtype is torch.bfloat16:  # NumPy knows no other package's dtypes.
            numbers: Array = value.view(torch.int16).numpy()
            return numbers.view(ml_dtypes.bfloat16)
        array: Array = value.numpy()
        return array

    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        if dist.is_initialized():
            actual = dist.get_world_size(), dist.get_rank()
            check_rank("torch.distributed", actual, (world_size, rank))
            with _listening_towards(coordinator), translate_peer_errors("join the others"):
                return TorchProcesses(timeout)
        # torchrun already listens at that address, with a store for the ranks that it has started.
        is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if is_torchrun and SECRET_VARIABLE in os.environ:
            _logger.warning("torchrun's store does not use the secret of %s.", SECRET_VARIABLE)
        store = None if is_torchrun else _open_store(coordinator, world_size, rank, join_timeout)
        with _listening_towards(coordinator), translate_peer_errors("join the others"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=store,
                world_size=world_size,
                rank=rank,
                timeout=timedelta(seconds=timeout),
            )
            atexit.register(_leave)
            return TorchProcesses(timeout)


_logger = logging.getLogger(__name__)

_SEEDS = 2**62

_SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface, in the last four of 24 bytes."""


def _open_store(coordinator: str, world_size: int, rank: int, timeout: float) -> dist.Store:
    """Returns rank 0's store once all ranks have come; it listens as `rendezvous` does."""
    rendezvous(coordinator, world_size, rank, timeout)
    host, port = parse_address("`coordinator`", coordinator)
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=max(1.0, timeout)),
        wait_for_workers=False,
        master_listen_fd=None if rank else listen_at(host, port, world_size).detach(),
    )


def _leave() -> None:
    """Ends the process groups' threads while the interpreter can still wait for them."""
    if dist.is_initialized():
        dist.destroy_process_group()


class TorchProcesses(SingleReplica, JoinedProcesses):
    """The processes of the default `torch.distributed` group, with a timeout in seconds."""

    translate_peer_errors = translate_peer_errors

    def __init__(self, timeout: float) -> None:
        # The second round has its own process group, since it is out of order with the first.
        self._sharing = dist.new_group(timeout=timedelta(seconds=timeout))
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.replicas: RemoteReplicas | None = self
        self.is_compilable = True
        self._known: set[Any] = set()  # The shapes that all ranks have agreed on.
        # Those of the last step, whose memory is reused.
        self._sums: GradientSums | None = None
        self._part_sums: PartSums | None = None

    def add_up(self, scalar: Any) -> Any:
        return self._sum_scalars([scalar])[0]

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        scalar_sums, counts, sums = self._sum(compute, batch, variables, None)
        return scalar_sums, counts, sums.finish()

    def sum_compressed(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        compression: Compression,
    ) -> tuple[list[Any], list[Any], list[Any], Callable[[], None]]:
        scalar_sums, counts, sums = self._sum(compute, batch, variables, compression)
        return scalar_sums, counts, sums.finish(), sums.keep

    def sum_parts(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        division: Division,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        scalars, finish = compute(self.rank, batch)
        scalar_sums = self._sum_scalars(scalars)
        sums = self._find_part_sums(division, variables)
        sums.start()
        more, gradients = finish(scalar_sums, sums.receive)
        counts = self._sum_scalars(more)
        return scalar_sums, counts, sums.finish(gradients)

    def share_parts(
        self, division: Division, parts: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> None:
        weights = []
        for variable in variables:
            value = raw_value(variable).detach()
            if not value.is_contiguous():  # An orthogonal initializer returns a transposed matrix.
                value = raw_value(variable).data = value.contiguous()
            weights.append(value.view(-1))
        self._find_part_sums(division, variables).share(parts, weights)

    def _find_part_sums(self, division: Division, variables: Sequence[keras.Variable]) -> PartSums:
        if self._part_sums is None or self._part_sums.division is not division:
            self._part_sums = PartSums(division, self.rank, raw_value(variables[0]).device)
        return self._part_sums

    def _sum(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        compression: Compression | None,
    ) -> tuple[list[Any], list[Any], GradientSums]:
        """Sums scalars over all ranks; returns them and the running sums of gradients."""
        scalars, finish = compute(self.rank, batch)
        scalar_sums = self._sum_scalars(scalars)
        kind = compression.kind if compression else None
        low_rank = kind if isinstance(kind, LowRank) else None
        if self._sums is None or not self._sums.is_for(variables, low_rank):
            self._sums = GradientSums(variables, self._sharing, low_rank)
        sums = self._sums
        sums.start(compression)
        with translate_peer_errors("sum the gradients"):
            self._check_shapes([*sums.shapes, (str(kind),)])  # The kind changes what is sent.
        # Outside of `translate_peer_errors`: an error of the backward pass is no lost peer.
        more, gradients = finish(scalar_sums, sums.receive)
        for index in reversed(range(len(gradients))):
            if gradients[index] is not None:
                sums.receive(index, gradients[index])
        counts = self._sum_scalars(more)
        return scalar_sums, counts, sums

    def _sum_scalars(self, scalars: Sequence[Any]) -> list[Any]:
        """Sums small tensors over all ranks, in float64."""
        with torch.no_grad(), translate_peer_errors("sum the gradients"):
            self._check_shapes([tensor.shape for tensor in scalars])
            exact = torch.cat([tensor.detach().reshape(-1).double() for tensor in scalars])
            dist.all_reduce(exact)
            return _split(exact.to(torch.float32), scalars)

    @contextlib.contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        """Context manager in which PyTorch's global generator differs by rank.

        Dropout draws from it, one number for each value, and the ranks may have unequal rows.
        """
        seed = int(torch.randint(_SEEDS, (), device="cpu"))  # The same on all ranks.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((seed + self.rank) % _SEEDS)
            yield

    def broadcast(self, value: Any) -> Any:
        values = [value]
        with translate_peer_errors("send what rank 0 knows"):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_variables(self, variables: Sequence[keras.Variable]) -> None:
        with torch.no_grad(), translate_peer_errors("send the variables of rank 0"):
            self._check_shapes([tuple(variable.shape) for variable in variables])
            for variable in variables:
                value = variable.value.detach().clone()
                dist.broadcast(value, src=0)
                variable.assign(value)

    def gather(self, array: Array) -> list[Array]:
        arrays: list[Any] = [None] * self.world_size
        with translate_peer_errors("gather the outputs"):
            dist.all_gather_object(arrays, array)
        return arrays

    def _ask(self, wishes: Sequence[bool]) -> Callable[[], list[bool]]:
        flags = torch.tensor(wishes, dtype=torch.uint8)
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True)

        def wait() -> list[bool]:
            work.wait()
            return [bool(flag) for flag in flags]

        return wait

    def _check_shapes(self, shapes: Sequence[Any]) -> None:
        """Raises an error if ranks would sum different tensors, which would hang."""
        key = tuple(tuple(shape) for shape in shapes)
        if key in self._known:
            return
        shapes_by_rank: list[Any] = [None] * self.world_size
        dist.all_gather_object(shapes_by_rank, key)
        check_same_shapes(self.rank, shapes_by_rank)
        self._known.add(key)


def _split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


@contextlib.contextmanager
def _listening_towards(coordinator: str) -> Iterator[None]:
    """Context manager in which gloo listens on the network interface towards the coordinator.

    By default gloo takes the interface of the host name, which is loopback on many machines.
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


def find_interface(host: str, port: int) -> str | None:
    """Returns the name of the interface that leads to a host, or `None` if it is unknown.

    Other than for loopback, it works on Linux, for the first IPv4 address of an interface.
    """
    if is_loopback(host):
        return "lo0" if sys.platform == "darwin" else "lo"
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # A UDP `connect` sends nothing.
        local_address = probe.getsockname()[0]
        for _, interface in socket.if_nameindex():
            if _read_address(probe, interface) == local_address:
                return interface
    return None


def _read_address(probe: socket.socket, interface: str) -> str | None:
    if sys.platform != "linux":
        return None
    import fcntl

    request = struct.pack("256s", interface.encode())
    with contextlib.suppress(OSError):  # The interface has no address.
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
    return None
