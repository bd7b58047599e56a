"""The public settings of a parameter server, from the script or the launcher's environment.

The implementation is in `training/parameter_server/`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.environment import read_tf_config
from keras_deepseek.training.launch.rank_environment import NUM_SERVERS, NUM_WORKERS, RAY_ADDRESS


@dataclass(frozen=True)
class ParameterServer:
    """A `distributed_strategy` of `Trainer`: asynchronous updates by workers and servers.

    On JAX and PyTorch, Ray starts the workers and servers. On TensorFlow the chief starts them,
    unless `TF_CONFIG` names them. There the script must begin with `join_cluster` of this object,
    unless `keras-deepseek launch` starts it.

    Choose it over `"allreduce"` if workers differ in speed, come and go, or are many for few
    servers: no worker waits for another, except for the `staleness_bound`. Updates are computed
    from weights that are some updates old, so the numbers differ from run to run.

    Args:
        num_workers: integer. The number of processes that compute gradients. Defaults to `None`:
            the number that the launcher was given.
        num_servers: integer. The number of processes that hold the weights, split by size, and
            update them. Defaults to `None`: the number that the launcher was given, else 1.
        staleness_bound: integer. The most updates that the weights of a gradient may have missed. A
            worker that would exceed it waits. `0` makes one update after the other, with the
            numbers of one process. Defaults to `None`: 2 for each worker.
        snapshot_every: integer. With Ray: the steps between two snapshots of the servers. A server
            that has ended restarts from the last one. The chief keeps the batches since then.
            Defaults to `100`.
        address: string. The address of a running Ray cluster, as in `"10.0.0.1:6379"`. Defaults to
            `None`: that in `RAY_ADDRESS`, else a cluster on this machine that listens on loopback
            only.

    Raises:
        InvalidInputError: An argument is out of range.

    Example:

    >>> ParameterServer(num_workers=2).staleness_bound is None
    True
    """

    num_workers: int | None = None
    num_servers: int | None = None
    staleness_bound: int | None = None
    snapshot_every: int = 100
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_workers", "num_servers", "snapshot_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        if self.staleness_bound is not None:
            check_integer("staleness_bound", self.staleness_bound, minimum=0)
        if self.address is not None and not (isinstance(self.address, str) and self.address):
            raise InvalidInputError(
                "`address` must be the address of a Ray cluster, as in '10.0.0.1:6379'; received "
                f"{self.address!r}."
            )


@dataclass(frozen=True)
class ServerSettings:
    """The complete settings of a `ParameterServer`, with all defaults filled in."""

    num_workers: int
    num_servers: int
    staleness_bound: int
    snapshot_every: int
    address: str | None


def take_servers(strategy: Any) -> Any:
    """Converts a `tf.distribute.ParameterServerStrategy` to a `ParameterServer`; keeps others.

    The workers and servers that such an object has connected to are used.
    """
    tasks = backend.current().distribution.adopt_tasks(strategy)
    return strategy if tasks is None else ParameterServer(tasks.num_workers, tasks.num_servers)


def resolve_settings(
    strategy: Any, environ: Mapping[str, str] = os.environ
) -> ServerSettings | None:
    """Returns the settings of a parameter server strategy; `None` for another strategy."""
    if strategy == "parameter_server":
        strategy = ParameterServer()
    if not isinstance(strategy, ParameterServer):
        return None
    if keras.backend.backend() == "tensorflow":
        strategy = _with_tf_config(strategy, environ)
    requested = replace(
        strategy,
        num_workers=_agree("num_workers", strategy.num_workers, NUM_WORKERS, environ),
        num_servers=_agree("num_servers", strategy.num_servers, NUM_SERVERS, environ),
        address=strategy.address or environ.get(RAY_ADDRESS) or None,
    )
    if requested.num_workers is None:
        raise InvalidInputError(
            "A parameter server needs the number of workers. Pass "
            "distributed_strategy=training.ParameterServer(num_workers=2), or start the script by "
            "keras-deepseek launch --nproc 4 --strategy parameter_server: a chief, a server and "
            "two workers."
        )
    bound = requested.staleness_bound
    return ServerSettings(
        num_workers=requested.num_workers,
        num_servers=requested.num_servers or 1,
        staleness_bound=2 * requested.num_workers if bound is None else bound,
        snapshot_every=requested.snapshot_every,
        address=requested.address,
    )


def _with_tf_config(strategy: ParameterServer, environ: Mapping[str, str]) -> ParameterServer:
    """Returns a `ParameterServer` with the worker and server counts of `TF_CONFIG`."""
    if strategy.address is not None:
        raise InvalidInputError(
            f"`address` is for Ray, on JAX and PyTorch; received {strategy.address!r}, and Keras "
            "runs on TensorFlow. Put the addresses of workers and servers into TF_CONFIG instead."
        )
    hints = read_tf_config(environ)
    if not hints.servers:
        return strategy
    counts = {"num_workers": len(hints.workers) - 1, "num_servers": len(hints.servers)}
    for name, number in counts.items():
        if getattr(strategy, name) not in (None, number):
            raise InvalidInputError(
                f"Received ParameterServer({name}={getattr(strategy, name)}), but TF_CONFIG names "
                f"{number}. Leave the argument out."
            )
    return replace(strategy, num_workers=counts["num_workers"], num_servers=counts["num_servers"])


def _agree(
    name: str, argument: int | None, variable: str, environ: Mapping[str, str]
) -> int | None:
    """Returns an argument or the number in its environment variable, which may not differ."""
    text = environ.get(variable)
    if text is None:
        return argument
    if not text.isdecimal() or not int(text):
        raise InvalidInputError(f"{variable} must be a number above 0; received {text!r}.")
    if argument not in (None, int(text)):
        raise InvalidInputError(
            f"ParameterServer({name}={argument}) and {variable}={text} contradict each other. "
            "Leave one of the two out."
        )
    return int(text)
