"""Joins the processes that train together."""

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.backend.processes import OneProcess, Processes
from keras_deepseek.backend.random_state import read_random_state, write_random_state
from keras_deepseek.training.cluster import ClusterSpec, Strategy, check_strategy
from keras_deepseek.training.cluster_resolver import choose_strategy, resolve_strategy
from keras_deepseek.training.parameter_server.join_servers import join_servers
from keras_deepseek.training.parameter_server.settings import (
    ParameterServer,
    resolve_settings,
    take_servers,
)
from keras_deepseek.training.stop_signal import keeping_stop_signal
from keras_deepseek.training.timeouts import read_join_timeout, read_peer_timeout


def join_cluster(
    distributed_strategy: Strategy | ParameterServer | None = None,
    *,
    world_size: int | None = None,
    rank: int | None = None,
    coordinator: str | None = None,
) -> ClusterSpec:
    """Joins the processes that train together, as a `Trainer` does when it is made.

    A script under `keras-deepseek launch` needs no such call. Started otherwise, as by torchrun or
    SLURM, a script on JAX or TensorFlow begins with it: these must know of the others before they
    compute anything, as they do for an optimizer. On PyTorch it may.

    Args:
        distributed_strategy: `"allreduce"`, or `"parameter_server"` or a `ParameterServer`, as for
            `Trainer`. Of a parameter server on TensorFlow the chief connects to workers and
            servers, and a process that `TF_CONFIG` makes one of these serves here until it is
            ended; on JAX and PyTorch there is nobody to join yet. Defaults to `None`: that of
            `keras-deepseek launch`, and without it `"allreduce"`.
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
    place = world_size, rank, coordinator
    distributed_strategy = choose_strategy(take_servers(distributed_strategy), *place)
    distributed_strategy = distributed_strategy or "allreduce"
    settings = resolve_settings(distributed_strategy)
    strategy, cluster = resolve_strategy(distributed_strategy, *place)
    check_strategy(strategy)
    if settings is None:
        start_processes(cluster)
    else:
        join_servers(settings, cluster)
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
    if cluster.world_size == 1 or cluster.coordinator is None:
        _refuse_others(cluster)
        return OneProcess()
    with keeping_stop_signal():
        return backend.current().join_processes(
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
    running = backend.current().count_processes()
    if cluster.strategy is not None and running > 1:
        raise InvalidInputError(
            f"{running} processes run together already, and distributed_strategy="
            f"{cluster.strategy!r} knows of one. Pass world_size, rank and coordinator, or start "
            "the script with keras-deepseek launch."
        )
