"""Joins the processes of a cluster, and gives them the same random state."""

from keras_deepseek import backend
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.backend.processes.processes import OneProcess, Processes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.cluster.stop_signal import keeping_stop_signal
from keras_deepseek.training.cluster.timeouts import read_join_timeout, read_peer_timeout


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
    running = backend.current().distribution.count_processes()
    if cluster.strategy is not None and running > 1:
        raise InvalidInputError(
            f"{running} processes run together already, and distributed_strategy="
            f"{cluster.strategy!r} knows of one. Pass world_size, rank and coordinator, or start "
            "the script with keras-deepseek launch."
        )
