"""From who trains together to processes that have met."""

import math
import os

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.processes import OneProcess, Processes
from keras_deepseek.backend.random_state import read_random_state, write_random_state
from keras_deepseek.training.cluster import ClusterSpec, Strategy
from keras_deepseek.training.cluster_resolver import resolve_cluster

_JOIN_TIMEOUT = "KERAS_DEEPSEEK_JOIN_TIMEOUT", 300.0
"""How long a process waits for the others to come, in seconds."""

_PEER_TIMEOUT = "KERAS_DEEPSEEK_PEER_TIMEOUT", 600.0
"""How long it waits, in seconds, for one that was there and does not answer."""


def join_cluster(
    distributed_strategy: Strategy = "allreduce",
    *,
    world_size: int | None = None,
    rank: int | None = None,
    coordinator: str | None = None,
) -> ClusterSpec:
    """Joins the processes that train together, as a `Trainer` does when it is made.

    JAX and TensorFlow must know of the others before they compute anything, as they do for an
    optimizer: there a script begins with it. On PyTorch it may.

    Args:
        distributed_strategy: `"allreduce"`, as for `Trainer`. Defaults to `"allreduce"`.
        world_size: integer, as for `Trainer`. Defaults to `None`: the environment says it.
        rank: integer, as for `Trainer`. Defaults to `None`: the environment says it.
        coordinator: string, as for `Trainer`. Defaults to `None`: the environment says it.

    Returns:
        The `ClusterSpec`, by which a script knows its rank.

    Raises:
        InvalidInputError: An argument contradicts another or the environment, or JAX or
            TensorFlow has computed already.
        NotSupportedError: This release has no such strategy on this backend.
        PeerLostError: A process has not come in time.

    Example:

    >>> cluster = join_cluster(world_size=1, rank=0)
    >>> cluster.rank
    0
    """
    cluster = resolve_cluster(distributed_strategy, world_size, rank, coordinator)
    start_processes(cluster)
    return cluster


def start_processes(cluster: ClusterSpec) -> Processes:
    """Returns the processes of a cluster once all of them are there.

    Args:
        cluster: `ClusterSpec`.

    Raises:
        InvalidInputError: This process trains in another cluster already, or rank 0 can't listen at
            the coordinator's port.
        NotSupportedError: This release has no such strategy on this backend.
        PeerLostError: A process has not come in time.
    """
    if cluster.strategy == "parameter_server":
        raise NotSupportedError(
            "Workers and servers don't run the script, and have nothing to join: on JAX and "
            "PyTorch the Trainer of one process starts them, by "
            "Trainer(distributed_strategy='parameter_server'); on TensorFlow that can't run yet."
        )
    if cluster.world_size == 1 or cluster.coordinator is None:
        _refuse_others(cluster)
        return OneProcess()
    return backend.current().join_processes(
        cluster.coordinator,
        cluster.world_size,
        cluster.rank,
        join_timeout=_read_seconds(*_JOIN_TIMEOUT),
        timeout=read_peer_timeout(),
    )


def read_peer_timeout() -> float:
    """Returns the seconds after which a process that does not answer is given up.

    Raises:
        InvalidInputError: The environment says something else.
    """
    return _read_seconds(*_PEER_TIMEOUT)


def share_random_state(processes: Processes) -> None:
    """Gives the shared generators of all processes the state that they have on rank 0.

    So they build the same model, and go through the same data in the same order.

    Args:
        processes: `Processes`.
    """
    if processes.world_size > 1:
        # What one process would make later, by then by another number, is not made here.
        write_random_state(processes.broadcast(read_random_state(makes_missing=False)))


def _refuse_others(cluster: ClusterSpec) -> None:
    """Raises an error where the framework runs in several processes that nobody told us of."""
    running = backend.current().count_processes()
    if cluster.strategy is not None and running > 1:
        raise InvalidInputError(
            f"{running} processes run together already, and distributed_strategy="
            f"{cluster.strategy!r} knows of one. Pass world_size, rank and coordinator, or start "
            "the script with keras-deepseek launch."
        )


def _read_seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInputError(f"{name} is a number of seconds above 0; received {text!r}.")
    return seconds
