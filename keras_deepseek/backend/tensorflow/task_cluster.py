"""TensorFlow's own parameter servers: its coordinator has workers compute what is on servers."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.processes.task_cluster import ResultLostError, TaskCluster
from keras_deepseek.backend.tensorflow.processes import TensorFlowProcesses
from keras_deepseek.errors import InvalidInputError, PeerLostError

_FAIL_FAST = "GRPC_FAIL_FAST", "use_caller"
"""Whoever calls a task that is gone hears of it, in place of waiting until it is there again."""

_connected: "list[CoordinatedTasks]" = []
"""TensorFlow connects once, for as long as it runs."""


def serve_task(
    addresses: Mapping[str, Sequence[str]], task_type: str, index: int, on_ready: Callable[[], None]
) -> None:
    """Computes what the chief of a cluster has it compute, until the process is ended."""
    os.environ.setdefault(*_FAIL_FAST)
    cluster = tf.train.ClusterSpec({kind: list(found) for kind, found in addresses.items()})
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
    """Returns how many operations a task is to run at once.

    One that waits for another task keeps a thread: with fewer than there are tasks that wait for
    each other, none goes on, for ever.
    """
    return max(os.cpu_count() or 1, 1 + sum(map(len, addresses.values())))


def connect_tasks(find_addresses: Callable[[], Mapping[str, Sequence[str]]]) -> TaskCluster:
    """Returns the workers and servers that this process is the chief of."""
    if not _connected:
        TensorFlowProcesses.refuse_begun()
        os.environ.setdefault(*_FAIL_FAST)
        addresses = {kind: list(found) for kind, found in find_addresses().items()}
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(addresses), task_type="chief", task_id=0, rpc_layer="grpc"
        )
        # For the connection and the coordinator alone: it knows of no variable.
        _connected.append(CoordinatedTasks(tf.distribute.ParameterServerStrategy(resolver)))
    return _connected[0]


def adopt_tasks(strategy: Any) -> TaskCluster | None:
    """Returns the workers and servers that an object has connected to; `None` for another."""
    if not isinstance(strategy, tf.distribute.ParameterServerStrategy):
        return None
    if not _connected:
        _connected.append(CoordinatedTasks(strategy))
    return _connected[0]


class CoordinatedTasks:
    """Workers that compute what they are given, and servers that hold variables.

    Args:
        strategy: `tf.distribute.ParameterServerStrategy`, which has connected to them.
    """

    def __init__(self, strategy: Any) -> None:
        cluster = strategy._cluster_resolver.cluster_spec()
        self.num_workers, self.num_servers = map(cluster.num_tasks, ("worker", "ps"))
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._threads = ThreadPoolExecutor(2 * self.num_workers + 2, "fetch")

    def on_server(self, index: int) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which variables are made, and operations run, on a server."""
        device: contextlib.AbstractContextManager[Any] = tf.device(
            f"/job:ps/replica:0/task:{index}/device:CPU:0"
        )
        return device

    def compile(self, function: Callable[..., Any]) -> Any:
        """Returns a function that is compiled into one call."""
        return tf.function(function, autograph=False)

    def run(self, function: Any, arguments: Sequence[Any]) -> None:
        """Runs a compiled function on the servers that it names."""
        with _lost_servers():
            function(*_tensors(arguments))

    def schedule(self, function: Any, arguments: Sequence[Any]) -> "Future[Any]":
        """Returns the future of what a compiled function returns, on the next free worker.

        Where that one dies, another computes it from its beginning.
        """
        with _lost_servers():
            remote = self._coordinator.schedule(function, args=tuple(_tensors(arguments)))
        return self._threads.submit(_fetch, remote)

    def store(self, variable: keras.Variable, slot: Any, value: Any) -> None:
        """Puts a tensor, or the rows of it that are not zero, into a slot of a variable."""
        stored = variable.value
        with tf.device(stored.device):
            if not isinstance(value, tf.IndexedSlices):
                stored.scatter_update(tf.IndexedSlices(tf.cast(value, stored.dtype)[None], [slot]))
                return
            zeros = tf.zeros([1, *stored.shape[1:]], stored.dtype)
            empty = stored.scatter_update(tf.IndexedSlices(zeros, [slot]))
        rows = tf.cast(value.indices, tf.int32)
        places = tf.stack([tf.fill(tf.shape(rows), slot), rows], axis=1)
        values = tf.cast(value.values, stored.dtype)
        with tf.device(stored.device), tf.control_dependencies([empty]):
            stored.scatter_nd_add(places, values)

    def load(self, variable: keras.Variable, slot: Any) -> Any:
        """Returns the tensor in a slot of a variable."""
        return variable.value.sparse_read(slot)

    def settle(self) -> None:
        """Waits until no worker computes anything any more; an error of theirs is known already."""
        with contextlib.suppress(Exception):
            self._coordinator.join()


@contextlib.contextmanager
def _lost_servers() -> Iterator[None]:
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise PeerLostError(
            "A parameter server has ended, or does not answer, and what it held is lost. Go on "
            f"from a checkpoint: fit(..., resume=True). TensorFlow: {_cause(error)}"
        ) from error


def _fetch(remote: Any) -> Any:
    try:
        return remote.fetch()
    except tf.errors.CancelledError as error:  # By an error of another.
        raise CancelledError(str(error)) from error
    except tf.errors.InvalidArgumentError as error:
        cause = _cause(error)
        raise InvalidInputError(f"A worker could not compute a batch: {cause}") from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise ResultLostError(_cause(error)) from error


def _cause(error: Exception) -> str:
    """Returns the line of TensorFlow's message that is about the cause, and not about the path."""
    message = str(error)
    found = re.search(r"\(0\) [A-Z_]+:\s+(.+)", message)
    if found:
        return found[1]
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
