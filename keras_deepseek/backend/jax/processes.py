"""Processes that train together by `jax.distributed`: one program over the devices of all."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_deepseek.artifacts.network_address import is_loopback, parse_address
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.jax.replicas import JaxReplicas
from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.backend.processes.processes import (
    JoinedProcesses,
    PeerErrorTranslator,
    Processes,
    RemoteReplicas,
    check_rank,
)
from keras_deepseek.backend.processes.rendezvous import rendezvous
from keras_deepseek.errors import InvalidInputError

_OF_PEERS = ("gloo", "nccl", "coordination service", "deadline_exceeded:", "unavailable:")
"""Words in errors of JAX that are about another process, and not about memory, for example."""


def join_processes(
    coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
) -> Processes:
    """Connects all processes of a training and returns them; see `Distribution.join_processes`."""
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
            "JAX must join the other processes before it computes anything, but it has computed "
            "already: creating an optimizer or a model, or calling jax.devices(), is enough. Under "
            "keras-deepseek launch, import Keras first. Otherwise begin the script with "
            "keras_deepseek.training.join_cluster()."
        ) from error
    return JaxProcesses()


class translate_peer_errors(PeerErrorTranslator):  # noqa: N801
    """A context manager that turns JAX's errors about other processes into `PeerLostError`."""

    engine = "JAX"

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns True if an error of JAX may be about another process."""
        text = str(error).lower()
        is_engines = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
        is_about_peers = is_engines and any(mark in text for mark in _OF_PEERS)
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
