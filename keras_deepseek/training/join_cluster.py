"""Joins the processes that train together."""

from keras_deepseek.training.cluster.cluster_options import ClusterOptions
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
