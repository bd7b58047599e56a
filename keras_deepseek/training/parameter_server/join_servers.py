"""Connects a process to TensorFlow's workers and servers."""

import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.network_address import parse_address
from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.errors import InvalidInputError, PeerLostError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.parameter_server import ServerSettings
from keras_deepseek.training.cluster.start_processes import read_join_timeout
from keras_deepseek.training.parameter_server.local_tasks import LocalTasks

_PAUSE = 0.2
"""Seconds between two attempts to connect to a process that does not listen yet."""


class Tasks(Protocol):
    """The interface to the processes of TensorFlow's workers and servers."""

    def look_after(self, ends_workers: bool = False) -> None:
        """Restarts worker processes that have ended.

        With `ends_workers`, all workers are killed first, because none answers. Raises a
        `PeerLostError` if a server has ended, or workers can't be started.
        """

    def note_update(self) -> None:
        """Notes that an update was made, so that the workers make progress."""


class _TasksElsewhere:
    """Worker and server processes that others started and restart, such as Kubernetes."""

    def look_after(self, ends_workers: bool = False) -> None:
        """Does nothing, because TensorFlow reconnects to a restarted worker."""

    def note_update(self) -> None:
        """Does nothing, because others restart these processes."""


_joined: list[Tasks] = []
"""The processes that TensorFlow has connected to. It can connect once in a process."""


def join_servers(
    settings: ServerSettings, cluster: ClusterSpec
) -> tuple[Tasks, TaskCluster] | None:
    """Connects the chief to its workers and servers on TensorFlow; starts them if there are none.

    If `TF_CONFIG` makes this process a worker or a server, it serves here until it is ended. If it
    names no addresses, the processes are started on this machine. On JAX and PyTorch nothing is
    done, and `None` returned: Ray starts the workers when training begins.
    """
    refuse_other_chiefs(settings, cluster)
    if keras.backend.backend() != "tensorflow":
        return None
    if cluster.task_type in ("worker", "ps"):
        # Rank 0 is the chief. Then come workers, and then servers.
        first_rank = 1 if cluster.task_type == "worker" else len(cluster.workers)
        backend.current().distribution.serve_task(
            _tasks_of(cluster), cluster.task_type, cluster.rank - first_rank, lambda: None
        )
        sys.exit(0)
    sizes = settings.num_workers, settings.num_servers

    def find() -> Mapping[str, Sequence[str]]:
        """Returns the addresses of all tasks, once these listen; starts them if necessary."""
        if cluster.servers:
            addresses = _tasks_of(cluster)
            _await_all([*addresses["worker"], *addresses["ps"]], read_join_timeout())
            _joined.append(_TasksElsewhere())
            return addresses
        local = LocalTasks(*sizes, read_join_timeout())
        _joined.append(local)
        return local.addresses

    connected = backend.current().distribution.connect_tasks(find)
    connected_sizes = connected.num_workers, connected.num_servers
    if connected_sizes != sizes:
        raise InvalidInputError(
            f"This process is already connected to {connected_sizes[0]} workers and "
            f"{connected_sizes[1]} servers of TensorFlow, and can't connect to others; received "
            f"num_workers={sizes[0]}, num_servers={sizes[1]}. Start another process for them."
        )
    if not _joined:  # A `tf.distribute` strategy of the script has connected.
        _joined.append(_TasksElsewhere())
    return _joined[0], connected


def refuse_other_chiefs(settings: ServerSettings, cluster: ClusterSpec) -> None:
    """Raises an error if several processes run the script as the chief.

    That is so if `world_size` is above 1 and no process is named a worker or a server.
    """
    if cluster.world_size > 1 and not cluster.servers:
        raise InvalidInputError(
            f"Only one process, the chief, runs the script. It starts {settings.num_workers} "
            f"workers and {settings.num_servers} servers itself; received world_size="
            f"{cluster.world_size}. Start the script once, or by keras-deepseek launch --strategy "
            "parameter_server."
        )


def _tasks_of(cluster: ClusterSpec) -> Mapping[str, Sequence[str]]:
    return {"chief": cluster.workers[:1], "worker": cluster.workers[1:], "ps": cluster.servers}


def _await_all(addresses: Sequence[str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    missing = list(addresses)
    while missing := [address for address in missing if not _listens(address)]:
        if time.monotonic() > deadline:
            raise PeerLostError(
                f"Waited {timeout:g} s for {', '.join(missing)}: TF_CONFIG names this address, and "
                "no process listens there. Start what is missing, or see its log for why it ended."
            )
        time.sleep(_PAUSE)


def _listens(address: str) -> bool:
    try:
        with socket.create_connection(parse_address("TF_CONFIG", address), timeout=1.0):
            return True
    except OSError:
        return False
