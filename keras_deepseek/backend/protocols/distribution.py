"""Training on several devices and in several processes."""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_deepseek.artifacts.divided_array import Box, StoredArray
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend import framework_name
from keras_deepseek.backend.processes.processes import Processes, Replicas
from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.errors import InvalidInputError, NotSupportedError

KerasDistribution: TypeAlias = keras.distribution.DataParallel | keras.distribution.ModelParallel
"""Keras's distributions. Their base class has no public name."""


class Distribution(abc.ABC):
    """The interface to training one model on several devices or processes."""

    # Devices of this process.

    def spread_over_devices(self, devices: Sequence[str] | None = None) -> KerasDistribution | None:
        """Returns a Keras distribution that divides batches among the devices, by default all.

        Returns `None` if the framework divides them by `replicate_over_devices` instead, or if
        there is one device. Raises `NotSupportedError` for devices that can't compute together.
        """
        return None

    def replicate_over_devices(self, strategy: Any) -> Replicas | None:
        """Returns replicas of a step on devices of this process, or `None` for one device.

        It is `None` as well if a Keras distribution divides batches among the devices. `strategy`
        is `"allreduce"` for all devices; a strategy of the framework; or a list of names such as
        `"gpu:0"`, whose devices get rows by their speed. Anything else raises `InvalidInputError`.
        """
        if strategy == "allreduce":
            return None
        raise InvalidInputError(
            "distributed_strategy must be 'allreduce', 'parameter_server', or one of Keras's "
            f"distributions; received {strategy!r}."
        )

    def distributed(self, distribution: KerasDistribution) -> AbstractContextManager[None]:
        """Returns a context manager in which a Keras distribution places variables and batches.

        Raises `NotSupportedError` where Keras has no distributions on this framework.
        """
        raise NotSupportedError(
            f"{type(distribution).__name__} is one of Keras's distributions, which run on JAX; "
            f"Keras runs on {framework_name()}. Set KERAS_BACKEND=jax, or leave "
            "distributed_strategy out."
        )

    def count_replicas(self, model: keras.Model) -> int:
        """Returns the number of replicas that `tf.distribute` keeps of a model."""
        return 1

    def place_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Moves existing variables to the devices of the active distribution."""

    def place_like(self, variable: keras.Variable, reference: keras.Variable) -> None:
        """Moves a variable to the devices of another one of its shape, which has been placed.

        What divides the variable further, by `divide_variable`, stays.
        """

    def divide_variable(self, variable: keras.Variable) -> None:
        """Divides a variable among the devices of the active distribution's batch axis.

        It is divided along the largest dimension that is whole and that their number divides. If
        there is none, or if it is divided among them already, it stays as it is.
        """
        raise NotSupportedError(f"{framework_name()} has no distributions of Keras.")

    # Several processes.

    @abc.abstractmethod
    def count_processes(self) -> int:
        """Returns the number of processes that the framework has already connected."""

    @abc.abstractmethod
    def process_rank(self) -> int:
        """Returns the rank of this process, 0 if it runs alone."""

    @abc.abstractmethod
    def read_whole(self, value: Any) -> Array:
        """Reads a whole tensor as an array.

        All processes over which the tensor is sharded must call this. The array may share the
        memory of the tensor: use it before the tensor changes. Raises `PeerLostError` if a process
        has ended, or does not answer.
        """

    def local_pieces(self, value: Any) -> Iterator[tuple[Box, Array]] | None:
        """Returns the pieces that this process saves of a tensor which no process has whole.

        The arrays may share the memory of the tensor. Returns `None`, as by default, for a tensor
        that each process has.
        """
        return None

    def assign_stored(self, variable: keras.Variable, source: StoredArray) -> None:
        """Assigns an array of files to a variable. A process reads the pieces that it needs."""
        variable.assign(np.asarray(source))

    def read_strategy(self, strategy: Any) -> tuple[int, int, str] | None:
        """Returns a framework strategy's world size, rank, and address of rank 0.

        Returns `None` for an object that is not one of the framework's, such as
        `tf.distribute.MultiWorkerMirroredStrategy`.
        """
        return None

    @abc.abstractmethod
    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        """Connects all processes of a training, and returns them.

        `coordinator` is the `HOST:PORT` at which rank 0 listens. After `join_timeout` seconds, a
        `PeerLostError` names the processes that did not come. `timeout` is how many seconds each
        later answer of a process may take. Raises `InvalidInputError` if rank 0 refuses
        this process.
        """

    # Workers and parameter servers.

    def connect_tasks(
        self, find_addresses: Callable[[], Mapping[str, Sequence[str]]]
    ) -> TaskCluster:
        """Connects this process, the chief, to its workers and parameter servers.

        `find_addresses` returns the addresses of `"chief"`, `"worker"` and `"ps"`, all of which
        serve. It is called the first time only. Raises `InvalidInputError` if the framework has
        computed something already, and `NotSupportedError` if it has no tasks.
        """
        raise _no_tasks()

    def adopt_tasks(self, strategy: Any) -> TaskCluster | None:
        """Returns the cluster to which a framework's strategy is connected, else `None`."""
        return None

    def serve_task(
        self,
        addresses: Mapping[str, Sequence[str]],
        task_type: str,
        index: int,
        on_ready: Callable[[], None],
    ) -> None:
        """Serves as one task of a cluster, which computes for its chief until the process ends.

        `addresses` are those of `"chief"`, `"worker"` and `"ps"`; `task_type` is one of the last
        two. `on_ready` is called when the task listens. Raises `NotSupportedError` if the framework
        has no tasks.
        """
        raise _no_tasks()


def _no_tasks() -> NotSupportedError:
    return NotSupportedError(
        f"Only TensorFlow has tasks of its own; Keras runs on {framework_name()}, where Ray starts "
        "the parameter servers."
    )
