"""From a parameter server's settings to workers and servers that listen, on TensorFlow."""

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
from keras_deepseek.training.cluster.timeouts import read_join_timeout
from keras_deepseek.training.parameter_server.local_tasks import LocalTasks

_PAUSE = 0.2
"""Seconds between two attempts to reach a task that does not listen yet."""


class Tasks(Protocol):
    """The processes of workers and servers."""

    def look_after(self, ends_workers: bool = False) -> None:
        """Starts workers again that have ended.

        Args:
            ends_workers: boolean. True to kill all workers first, because none answers.

        Raises:
            PeerLostError: A server has ended, or workers can't be started.
        """

    def note_update(self) -> None:
        """Notes that the workers make progress."""


class _TasksElsewhere:
    """Processes that somebody else has started and restarts, such as Kubernetes."""

    def look_after(self, ends_workers: bool = False) -> None:
        """Does nothing: TensorFlow reconnects to a worker that listens again."""

    def note_update(self) -> None:
        """Does nothing."""


_joined: list[Tasks] = []
"""The processes that TensorFlow has connected to. It can connect once in a process."""


def join_servers(
    settings: ServerSettings, cluster: ClusterSpec
) -> tuple[Tasks, TaskCluster] | None:
    """Returns the tasks of a parameter server, on TensorFlow; else they are started later.

    A process that is itself a worker or a server serves here until it is ended.

    Args:
        settings: `ServerSettings`.
        cluster: `ClusterSpec`. The addresses that `TF_CONFIG` names; without any, the tasks are
            started on this machine.

    Raises:
        InvalidInputError: TensorFlow has computed something already, or has connected to others; or
            others run the script too.
        PeerLostError: A task does not come in time.
    """
    refuse_other_chiefs(settings, cluster)
    if keras.backend.backend() != "tensorflow":
        return None
    if cluster.task_type in ("worker", "ps"):
        first = 1 if cluster.task_type == "worker" else len(cluster.workers)
        backend.current().distribution.serve_task(
            _tasks_of(cluster), cluster.task_type, cluster.rank - first, lambda: None
        )
        sys.exit(0)
    sizes = settings.num_workers, settings.num_servers

    def find() -> Mapping[str, Sequence[str]]:
        if cluster.servers:
            addresses = _tasks_of(cluster)
            _await_all([*addresses["worker"], *addresses["ps"]], read_join_timeout())
            _joined.append(_TasksElsewhere())
            return addresses
        local = LocalTasks(*sizes, read_join_timeout())
        _joined.append(local)
        return local.addresses

    connected = backend.current().distribution.connect_tasks(find)
    found = connected.num_workers, connected.num_servers
    if found != sizes:
        raise InvalidInputError(
            f"This process has {found[0]} workers and {found[1]} servers of TensorFlow already, "
            f"and they stay; received num_workers={sizes[0]}, num_servers={sizes[1]}. Use "
            "another process for other numbers."
        )
    if not _joined:  # An object of the script's has connected.
        _joined.append(_TasksElsewhere())
    return _joined[0], connected


def refuse_other_chiefs(settings: ServerSettings, cluster: ClusterSpec) -> None:
    """Raises an error where several processes run the script and none is told to be a worker.

    Args:
        settings: `ServerSettings`.
        cluster: `ClusterSpec`.

    Raises:
        InvalidInputError: That is so.
    """
    if cluster.world_size > 1 and not cluster.servers:
        raise InvalidInputError(
            f"One process runs the script, the chief, and starts {settings.num_workers} "
            f"workers and {settings.num_servers} servers; received world_size="
            f"{cluster.world_size}. Start it once, or by keras-deepseek launch --strategy "
            "parameter_server."
        )


def _tasks_of(cluster: ClusterSpec) -> Mapping[str, Sequence[str]]:
    return {
        "chief": cluster.workers[:1],
        "worker": cluster.workers[1:],
        "ps": cluster.servers,
    }


def _await_all(addresses: Sequence[str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    missing = list(addresses)
    while missing := [each for each in missing if not _listens(each)]:
        if time.monotonic() > deadline:
            raise PeerLostError(
                f"Waited {timeout:g} s for {', '.join(missing)}, which TF_CONFIG names and where "
                "nobody listens. Start what is missing, or see its log for why it ended."
            )
        time.sleep(_PAUSE)


def _listens(address: str) -> bool:
    try:
        with socket.create_connection(parse_address("TF_CONFIG", address), timeout=1.0):
            return True
    except OSError:
        return False
