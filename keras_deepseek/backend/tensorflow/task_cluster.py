"""TensorFlow's parameter server cluster, whose coordinator runs functions on workers."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager.context import context

from keras_deepseek.backend.processes.task_cluster import ResultLostError, TaskCluster
from keras_deepseek.errors import InvalidInputError, PeerLostError

_FAIL_FAST = "GRPC_FAIL_FAST", "use_caller"
"""An environment variable by which a call of a task that has ended fails at once."""

_connected: "list[CoordinatedTasks]" = []
"""The one cluster: TensorFlow connects once in a process."""


def serve_task(
    addresses: Mapping[str, Sequence[str]], task_type: str, index: int, on_ready: Callable[[], None]
) -> None:
    """Runs this process as one task of a cluster; see `Distribution.serve_task`."""
    os.environ.setdefault(*_FAIL_FAST)
    cluster = tf.train.ClusterSpec(
        {kind: list(task_addresses) for kind, task_addresses in addresses.items()}
    )
    server = tf.distribute.Server(
        cluster,
        job_name=task_type,
        task_index=index,
        protocol="grpc",
        config=tf.compat.v1.ConfigProto(inter_op_parallelism_threads=_num_threads(addresses)),
    )
    on_ready()
    server.join()


def _num_threads(addresses: Mapping[str, Sequence[str]]) -> int:
    """Returns the number of threads that run the operations of a task.

    An operation that waits for another task keeps its thread. With fewer threads than tasks that
    wait for each other, none would ever go on.
    """
    return max(os.cpu_count() or 1, 1 + sum(map(len, addresses.values())))


def connect_tasks(find_addresses: Callable[[], Mapping[str, Sequence[str]]]) -> TaskCluster:
    """Connects the chief to its workers and servers: see `Distribution.connect_tasks`."""
    if not _connected:
        refuse_begun()
        os.environ.setdefault(*_FAIL_FAST)
        addresses = {
            kind: list(task_addresses) for kind, task_addresses in find_addresses().items()
        }
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(addresses), task_type="chief", task_id=0, rpc_layer="grpc"
        )
        # Used for the connection and the coordinator only. It holds no variables.
        _connected.append(CoordinatedTasks(tf.distribute.ParameterServerStrategy(resolver)))
    return _connected[0]


def adopt_tasks(strategy: Any) -> TaskCluster | None:
    """Returns the cluster of a `ParameterServerStrategy`, or `None` for another object."""
    if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return None
    if not _connected:
        _connected.append(CoordinatedTasks(strategy))
    return _connected[0]


class CoordinatedTasks:
    """Workers that run functions, and servers that hold variables: a `TaskCluster`.

    `strategy` is a `tf.distribute.ParameterServerStrategy`, connected to them.
    """

    def __init__(self, strategy: Any) -> None:
        cluster = strategy._cluster_resolver.cluster_spec()  # noqa: SLF001
        self.num_workers, self.num_servers = map(cluster.num_tasks, ("worker", "ps"))
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._threads = ThreadPoolExecutor(2 * self.num_workers + 2, "fetch")

    def on_server(self, index: int) -> contextlib.AbstractContextManager[Any]:
        """Returns a context manager that places variables and operations on a parameter server."""
        device: contextlib.AbstractContextManager[Any] = tf.device(
            f"/job:ps/replica:0/task:{index}/device:CPU:0"
        )
        return device

    def compile(self, function: Callable[..., Any]) -> Any:
        """Compiles a function of tensor structures for the cluster."""
        return tf.function(function, autograph=False)

    def run(self, function: Any, arguments: Sequence[Any]) -> None:
        """Runs a compiled function on the servers that it names."""
        with _lost_servers():
            function(*_tensors(arguments))

    def schedule(self, function: Any, arguments: Sequence[Any]) -> "Future[Any]":
        """Returns the future result of a compiled function, which runs on the next free worker.

        If that worker dies, another runs it from the start.
        """
        with _lost_servers():
            remote = self._coordinator.schedule(function, args=tuple(_tensors(arguments)))
        return self._threads.submit(_fetch, remote)

    def store(self, variable: keras.Variable, slot: Any, value: Any) -> None:
        """Writes a tensor, or only its rows that are not zero, into a variable's slot."""
        stored = variable.value
        with tf.device(stored.device):
            if not isinstance(value, tf.IndexedSlices):
                stored.scatter_update(tf.IndexedSlices(tf.cast(value, stored.dtype)[None], [slot]))
                return
            zeros = tf.zeros([1, *stored.shape[1:]], stored.dtype)
            empty = stored.scatter_update(tf.IndexedSlices(zeros, [slot]))
        rows = tf.cast(value.indices, tf.int32)
        indices = tf.stack([tf.fill(tf.shape(rows), slot), rows], axis=1)
        values = tf.cast(value.values, stored.dtype)
        with tf.device(stored.device), tf.control_dependencies([empty]):
            stored.scatter_nd_add(indices, values)

    def load(self, variable: keras.Variable, slot: Any) -> Any:
        """Reads the tensor in a variable's slot."""
        return variable.value.sparse_read(slot)

    def settle(self) -> None:
        """Waits until no worker is computing, and ignores errors."""
        with contextlib.suppress(Exception):
            self._coordinator.join()


@contextlib.contextmanager
def _lost_servers() -> Iterator[None]:
    """Context manager that turns errors about a parameter server into `PeerLostError`."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise PeerLostError(
            "A parameter server has ended, or does not answer, and its variables are lost. "
            f"Continue from a checkpoint: fit(..., resume=True). TensorFlow: {_cause(error)}"
        ) from error


def _fetch(remote: Any) -> Any:
    """Waits for a worker's result, and turns TensorFlow's errors into those of `TaskCluster`."""
    try:
        return remote.fetch()
    except tf.errors.CancelledError as error:  # Another call has failed.
        raise CancelledError(str(error)) from error
    except tf.errors.InvalidArgumentError as error:
        cause = _cause(error)
        raise InvalidInputError(f"A worker could not compute a batch: {cause}") from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise ResultLostError(_cause(error)) from error


def _cause(error: Exception) -> str:
    message = str(error)
    match = re.search(r"\(0\) [A-Z_]+:\s+(.+)", message)
    if match:
        return match[1]
    path = ("Graph execution error", "Detected at", "File ", "Additional GRPC", ":UNKNOWN")
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if line and not line.startswith(path)), message)


def _tensors(arguments: Sequence[Any]) -> list[Any]:
    return [
        tf.nest.map_structure(
            lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), argument
        )
        for argument in arguments
    ]


def refuse_begun() -> None:
    """Raises `InvalidInputError` if TensorFlow has already run operations in this process."""
    # TensorFlow itself would fail after the rendezvous, on one rank only.
    if context()._initialized:  # noqa: SLF001
        raise InvalidInputError(
            "TensorFlow must join the other processes before it computes anything, but it has "
            "computed already: creating an optimizer, a model or a tf.data.Dataset is enough. "
            "Begin the script with keras_deepseek.training.join_cluster(), with the same "
            "strategy."
        )
