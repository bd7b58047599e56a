"""Joining of the processes that train together."""

from keras_deepseek.training.cluster.cluster_resolver import ClusterOptions
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec, Strategy, check_strategy
from keras_deepseek.training.cluster.parameter_server import ParameterServer
from keras_deepseek.training.cluster.start_processes import start_processes
from keras_deepseek.training.parameter_server.join_servers import join_servers


def join_cluster(
    distributed_strategy: Strategy | ParameterServer | None = None,
    *,
    world_size: int | None = None,
    rank: int | None = None,
    coordinator: str | None = None,
) -> ClusterSpec:
    """Joins the processes that train together, as a `Trainer` does when it is created.

    A script under `keras-deepseek launch` does not need it. If it is started otherwise, such as by
    torchrun or SLURM, a script on JAX or TensorFlow must begin with it: these frameworks must know
    of the other processes before they compute anything, and creating an optimizer already computes.
    On PyTorch it is optional.

    Args:
        distributed_strategy: `"allreduce"`, `"parameter_server"` or a `ParameterServer`, as for
            `Trainer`. For a parameter server on TensorFlow, the chief connects to workers and
            servers, and a process that `TF_CONFIG` makes a worker or a server serves here until it
            is ended; on JAX and PyTorch there is nothing to join yet. Defaults to `None`: the
            strategy of `keras-deepseek launch`, else `"allreduce"`.
        world_size: integer. The number of processes, as for `Trainer`. Defaults to `None`: read
            from the environment.
        rank: integer. The number of this process, as for `Trainer`. Defaults to `None`: read from
            the environment.
        coordinator: string. The address of rank 0, as for `Trainer`. Defaults to `None`: read from
            the environment.

    Returns:
        The `ClusterSpec`, which has the rank of this process.

    Raises:
        InvalidInputError: An argument contradicts another or the environment; JAX or TensorFlow
            has already computed something; or rank 0 refuses this process, because it has another
            secret, another world size, or the rank of another process.
        NotSupportedError: The backend does not support the strategy.
        PeerLostError: A process did not come in time.

    Example:

    >>> cluster = join_cluster(world_size=1, rank=0)
    >>> cluster.rank
    0
    """
    options = ClusterOptions(
        distributed_strategy=distributed_strategy,
        world_size=world_size,
        rank=rank,
        coordinator=coordinator,
    )
    resolved = options.resolve(default_strategy="allreduce")
    check_strategy(resolved.strategy)
    if resolved.servers is None:
        start_processes(resolved.spec)
    else:
        join_servers(resolved.servers, resolved.spec)
    return resolved.spec
