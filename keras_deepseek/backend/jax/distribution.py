"""Training on several devices or processes with JAX, as one program over the devices of all."""

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import keras
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_deepseek.artifacts.divided_array import Box, StoredArray
from keras_deepseek.artifacts.network_address import is_loopback, parse_address
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.jax.replicas import JaxReplicas, divided_axis
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.backend.keras_private.trainers import (
    changed_data_distribution,
    changed_steps,
    distribute_array,
)
from keras_deepseek.backend.keras_private.variables import (
    give_layout,
    layout_axes,
    place_by_layout,
)
from keras_deepseek.backend.processes.processes import (
    JoinedProcesses,
    PeerErrorTranslator,
    Processes,
    RemoteReplicas,
    check_rank,
)
from keras_deepseek.backend.processes.rendezvous import rendezvous
from keras_deepseek.backend.processes.shared_threads import share_threads
from keras_deepseek.backend.protocols.distribution import Distribution, KerasDistribution
from keras_deepseek.errors import InvalidInputError, NotSupportedError


class JaxDistribution(Distribution):
    """Implements `Distribution` by Keras's distributions and `jax.distributed`."""

    def spread_over_devices(self, devices: Sequence[str] | None = None) -> KerasDistribution | None:
        if devices is not None:
            if len({device.split(":")[0] for device in devices}) > 1:
                raise NotSupportedError(
                    f"device_map asks for {list(devices)}, but one program of JAX runs on devices "
                    "of one kind. Name one kind, or train on TensorFlow or PyTorch."
                )
            return keras.distribution.DataParallel(devices=list(devices), auto_shard_dataset=False)
        if jax.device_count() == 1:
            return None
        return keras.distribution.DataParallel(auto_shard_dataset=False)

    def distributed(self, distribution: KerasDistribution) -> AbstractContextManager[None]:
        return _in_scope(distribution)

    def place_variables(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:
            place_by_layout(variable)

    def place_like(self, variable: keras.Variable, reference: keras.Variable) -> None:
        mesh = keras.distribution.distribution().device_mesh
        axes = layout_axes(reference)
        further = [None if name in axes else name for name in layout_axes(variable)]
        axes = [name or other for name, other in zip(axes, further, strict=True)]
        give_layout(variable, keras.distribution.TensorLayout(axes, mesh))

    def divide_variable(self, variable: keras.Variable) -> None:
        distribution = keras.distribution.distribution()
        mesh = distribution.device_mesh
        num_devices = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
        axes = layout_axes(variable)
        whole = [
            size if name is None else 1 for size, name in zip(variable.shape, axes, strict=True)
        ]
        axis = divided_axis(whole, num_devices)
        if axis is not None and distribution.batch_dim_name not in axes:
            axes[axis] = distribution.batch_dim_name
            give_layout(variable, keras.distribution.TensorLayout(axes, mesh))

    def count_processes(self) -> int:
        return int(jax.process_count())

    def process_rank(self) -> int:
        return int(jax.process_index())

    def read_whole(self, value: Any) -> Array:
        if not isinstance(value, jax.Array):
            return np.asarray(value)
        if _is_divided(value):
            with translate_peer_errors("read a variable that is shared out"):
                gathered: Array = multihost_utils.process_allgather(value, tiled=True)
            return gathered
        if value.is_fully_replicated:
            return np.asarray(value.addressable_data(0))
        whole: Array = np.empty(value.shape, value.dtype)
        for box, piece in _local_pieces(value):
            whole[tuple(slice(*sides) for sides in box)] = piece
        return whole

    def local_pieces(self, value: Any) -> Iterator[tuple[Box, Array]] | None:
        return _local_pieces(value) if _is_divided(value) else None

    def assign_stored(self, variable: keras.Variable, source: StoredArray) -> None:
        shape, sharding = tuple(variable.shape), variable.value.sharding
        variable.assign(jax.make_array_from_callback(shape, sharding, source.__getitem__))

    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        if jax.distributed.is_initialized():
            actual = jax.process_count(), jax.process_index()
            check_rank("jax.distributed", actual, (world_size, rank))
            return JaxProcesses()
        host, port = parse_address("`coordinator`", coordinator)
        rendezvous(coordinator, world_size, rank, join_timeout)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(
                coordinator,
                world_size,
                rank,
                initialization_timeout=max(1, round(join_timeout)),
                heartbeat_timeout_seconds=max(10, round(timeout)),
                coordinator_bind_address=f"{host}:{port}" if is_loopback(host) else None,
            )
        except RuntimeError as error:
            if "must be called before" not in str(error):
                raise
            raise InvalidInputError(
                "JAX must join the other processes before it computes anything, but it has "
                "computed already: creating an optimizer or a model, or calling jax.devices(), is "
                "enough. Under keras-deepseek launch, import Keras first. Otherwise begin the "
                "script with keras_deepseek.training.join_cluster()."
            ) from error
        return JaxProcesses()


@contextmanager
def _in_scope(distribution: KerasDistribution) -> Iterator[None]:
    """Context manager that activates a distribution, for batches of any number of rows.

    A batch that can't be divided into equal parts is put on every device as a whole; Keras itself
    fails there. On CPU devices that share threads, each step ends before the next begins: see
    `share_threads`.
    """

    def distribute(batch: Any, layout: Any, batch_dim_name: str) -> Any:
        sharding = _fitting(layout, np.shape(batch))
        if sharding.is_fully_addressable:
            return jax.device_put(batch, sharding)
        # Each process has the whole batch, and passes its devices their rows.
        array = np.asarray(batch)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    with contextlib.ExitStack() as stack:
        stack.enter_context(changed_data_distribution(distribute))
        if share_threads(distribution.device_mesh.backend_mesh.local_devices):
            stack.enter_context(changed_steps(jax.block_until_ready))
        stack.enter_context(distribution.scope())
        yield


GATHERED = "gathered weight"
"""The name of a gathered weight in a traced program."""


def weight_gatherer(
    variables: Sequence[keras.Variable],
) -> Callable[[keras.Variable, Any], Any] | None:
    """Returns a function that gathers a weight that is split over the axis of the batch (FSDP).

    The gradient is scattered in the same way. Without it, XLA may gather the rows of the batch on
    all devices instead. Returns `None` if none of the variables is split so.
    """
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, keras.distribution.ModelParallel):
        return None
    mesh, batch_axis = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
    if not any(batch_axis in layout_axes(variable) for variable in variables):
        return None

    def gather(variable: keras.Variable, value: Any) -> Any:
        axes = layout_axes(variable)
        if batch_axis not in axes:
            return value
        whole = [None if axis == batch_axis else axis for axis in axes]
        shardings = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (whole, axes))
        return checkpoint_name(_gather(value, *shardings), GATHERED)

    return gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(value: Any, whole: NamedSharding, part: NamedSharding) -> Any:
    return jax.lax.with_sharding_constraint(value, whole)


def _gather_forward(value: Any, whole: NamedSharding, part: NamedSharding) -> tuple[Any, None]:
    return jax.lax.with_sharding_constraint(value, whole), None


def _scatter(whole: NamedSharding, part: NamedSharding, _: None, gradient: Any) -> tuple[Any]:
    return (jax.lax.with_sharding_constraint(gradient, part),)


_gather.defvjp(_gather_forward, _scatter)


def place_batch(batch: Any) -> Any:
    """Puts a batch on the devices of the active distribution, if there is one."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    return keras.tree.map_structure(
        lambda array: None if array is None else distribute_array(array, distribution), batch
    )


def _is_divided(value: Any) -> bool:
    """Returns True for an array that no process has whole."""
    is_local = not isinstance(value, jax.Array) or value.is_fully_addressable
    return not (is_local or value.is_fully_replicated)


def _local_pieces(value: jax.Array) -> Iterator[tuple[Box, Array]]:
    """Yields the pieces of an array that this process saves: each number once in all processes.

    Each is read by another object than the array, which would keep a copy in the host's memory.
    """
    for number, shard in enumerate(value.addressable_shards):
        if shard.replica_id == 0:
            sides = zip(shard.index, value.shape, strict=True)
            box = tuple(side.indices(size)[:2] for side, size in sides)
            yield box, np.asarray(value.addressable_data(number))


def _fitting(layout: Any, shape: Sequence[int]) -> jax.sharding.Sharding:
    """Returns a layout's sharding, or full replication if it can't divide the shape equally."""
    sharding: NamedSharding = getattr(layout, "backend_layout", layout)
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError:
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


_PEER_MESSAGES = ("gloo", "nccl", "coordination service", "deadline_exceeded:", "unavailable:")
"""Words in errors of JAX that are about another process, and not about memory, for example."""


class translate_peer_errors(PeerErrorTranslator):  # noqa: N801
    """A context manager that turns JAX's errors about other processes into `PeerLostError`."""

    engine = "JAX"

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns True if an error of JAX may be about another process."""
        text = str(error).lower()
        is_engines = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
        is_about_peers = is_engines and any(mark in text for mark in _PEER_MESSAGES)
        return is_about_peers and jax.process_count() > 1


class JaxProcesses(JoinedProcesses):
    """The processes of `jax.distributed`, each of which runs the same program."""

    is_one_program = True
    translate_peer_errors = translate_peer_errors

    def __init__(self) -> None:
        self.rank = jax.process_index()
        self.world_size = jax.process_count()
        self.replicas: RemoteReplicas | None = JaxReplicas()
        # One device of each process, so that each wish counts once.
        firsts = [
            next(device for device in jax.devices() if device.process_index == rank)
            for rank in range(self.world_size)
        ]
        self._mesh = Mesh(np.array(firsts), ["rank"])
        whole = NamedSharding(self._mesh, PartitionSpec())
        self._any = jax.jit(lambda wishes: jax.numpy.max(wishes, axis=0), out_shardings=whole)

    def broadcast(self, value: Any) -> Any:
        return self._send(value, source=0)

    def broadcast_variables(self, variables: Sequence[keras.Variable]) -> None:
        # A variable on the devices of all processes has one value already.
        local = [variable for variable in variables if variable.value.is_fully_addressable]
        values = self._send([np.asarray(variable.value) for variable in local], source=0)
        if len(values) != len(local):
            raise InvalidInputError(
                f"The models of the processes differ: rank 0 has {len(values)} variables to send, "
                f"rank {self.rank} has {len(local)}. Build the same model on each."
            )
        for variable, value in zip(local, values, strict=True):
            variable.assign(value)

    def gather(self, array: Array) -> list[Array]:
        return [self._send(array, source=rank) for rank in range(self.world_size)]

    def _send(self, value: Any, source: int) -> Any:
        """Returns the picklable value of one rank on all ranks."""
        is_source = self.rank == source
        data = np.frombuffer(pickle.dumps(value), "uint8") if is_source else np.zeros(0, "uint8")
        with translate_peer_errors(f"get what rank {source} knows"):
            size = multihost_utils.broadcast_one_to_all(np.array(data.size), is_source)
            sent = data if is_source else np.zeros(int(size), "uint8")
            received = multihost_utils.broadcast_one_to_all(sent, is_source)
        return pickle.loads(np.asarray(received).tobytes())

    @contextmanager
    def whole_outputs(self, model: keras.Model) -> Iterator[None]:
        whole = NamedSharding(Mesh(np.array(jax.devices()), ["device"]), PartitionSpec())

        def predict_step(state: Any, data: Any) -> Any:
            outputs, variables = type(model).predict_step(model, state, data)
            return jax.lax.with_sharding_constraint(outputs, whole), variables

        with own_attributes(model, predict_step=predict_step, predict_function=None):
            yield

    def _ask(self, wishes: Sequence[bool]) -> Callable[[], list[bool]]:
        sharding = NamedSharding(self._mesh, PartitionSpec("rank"))
        local_wishes = np.array([wishes], "int32")
        global_wishes = jax.make_array_from_process_local_data(
            sharding, local_wishes, (self.world_size, len(wishes))
        )
        answer = self._any(global_wishes)
        return lambda: [bool(wish) for wish in np.asarray(answer)]
