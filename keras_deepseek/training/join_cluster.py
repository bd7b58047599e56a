"""From who trains together to processes that have met."""

import math
import os

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.processes import Processes
from keras_deepseek.training.cluster import ClusterSpec

_JOIN_TIMEOUT = "KERAS_DEEPSEEK_JOIN_TIMEOUT", 300.0
"""How long a process waits for the others to come, in seconds."""

_PEER_TIMEOUT = "KERAS_DEEPSEEK_PEER_TIMEOUT", 600.0
"""How long it waits, in seconds, for one that was there and does not answer."""


def join_cluster(cluster: ClusterSpec) -> Processes | None:
    """Returns the processes of a cluster once all of them are there; `None` for one alone.

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
            "distributed_strategy='parameter_server' can't run yet. Use 'allreduce', or leave "
            "distributed_strategy out."
        )
    if cluster.world_size == 1 or cluster.coordinator is None:
        return None
    return backend.current().join_processes(
        cluster.coordinator,
        cluster.world_size,
        cluster.rank,
        join_timeout=_read_seconds(*_JOIN_TIMEOUT),
        timeout=_read_seconds(*_PEER_TIMEOUT),
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
