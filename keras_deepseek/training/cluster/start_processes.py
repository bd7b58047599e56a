"""Joins the processes of a cluster, and gives all of them the same random state."""

import math
import os

from keras_deepseek import backend
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.backend.processes.processes import OneProcess, Processes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.stop_signal import keeping_stop_signal


def start_processes(cluster: ClusterSpec) -> Processes:
    """Joins the processes of a cluster, and returns their connection when all have come."""
    if cluster.world_size == 1 or cluster.coordinator is None:
        _refuse_others(cluster)
        return OneProcess()
    with keeping_stop_signal():
        return backend.current().distribution.join_processes(
            cluster.coordinator,
            cluster.world_size,
            cluster.rank,
            join_timeout=read_join_timeout(),
            timeout=read_peer_timeout(),
        )


def share_random_state(processes: Processes) -> None:
    """Sets the global random generators of each process to the state of rank 0.

    So all build the same model, and read the data in the same order.
    """
    if processes.world_size > 1:
        # A generator that does not exist yet is not created here: one process alone would create
        # it later, from another state.
        write_random_state(processes.broadcast(read_random_state(makes_missing=False)))


def _refuse_others(cluster: ClusterSpec) -> None:
    running = backend.current().distribution.count_processes()
    if cluster.strategy is not None and running > 1:
        raise InvalidInputError(
            f"{running} processes already run together, but distributed_strategy="
            f"{cluster.strategy!r} was told of one. Pass world_size, rank and coordinator, or "
            "start the script with keras-deepseek launch."
        )


_JOIN_TIMEOUT = "KERAS_DEEPSEEK_JOIN_TIMEOUT", 300.0
"""Seconds to wait for other processes to come."""

_PEER_TIMEOUT = "KERAS_DEEPSEEK_PEER_TIMEOUT", 600.0
"""Seconds to wait for a process that came and does not answer."""


def read_join_timeout() -> float:
    """Returns the number of seconds to wait for other processes to join."""
    return _read_seconds(*_JOIN_TIMEOUT)


def read_peer_timeout() -> float:
    """Returns the number of seconds after which a silent process counts as lost."""
    return _read_seconds(*_PEER_TIMEOUT)


def _read_seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInputError(f"{name} must be a number of seconds above 0; received {text!r}.")
    return seconds
