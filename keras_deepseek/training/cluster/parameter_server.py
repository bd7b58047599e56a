"""What a user says of a parameter server, in the script or by the launcher's environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.sources.tf_config import read_tf_config
from keras_deepseek.training.launch.rank_environment import NUM_SERVERS, NUM_WORKERS, RAY_ADDRESS


@dataclass(frozen=True)
class ParameterServer:
    """A `distributed_strategy` of `Trainer`: asynchronous updates by workers and servers.

    On JAX and PyTorch they are started by Ray, on TensorFlow by the chief, or by whoever sets
    `TF_CONFIG`; there a script begins with `join_cluster` of it, unless `keras-deepseek launch`
    starts it.

    Choose it over `"allreduce"` where the workers are of different speeds, come and go, or are many
    beside few servers: none waits for another, but for `staleness_bound`. The updates are computed
    from weights that are some updates old, so that the numbers are those of no other run.

    Args:
        num_workers: integer. The processes that compute gradients. Defaults to `None`: as the
            launcher was told.
        num_servers: integer. The processes that hold the weights, each some of them by size, and
            update them. Defaults to `None`: as the launcher was told, else 1.
        staleness_bound: integer. How many updates the weights may have missed, at most, by which an
            update is computed; who would be later than that waits. `0` is one update after the
            other, with the numbers of one process. Defaults to `None`: 2 for each worker.
        snapshot_every: integer. By Ray, the steps between two snapshots of the servers, from which
            one that has died goes on. The chief keeps the batches since then. Defaults to `100`.
        address: string. A Ray cluster that runs already, as in `"10.0.0.1:6379"`. Defaults to
            `None`: that of `RAY_ADDRESS`, and where there is none, one on this machine that listens
            on loopback alone.

    Raises:
        InvalidInputError: A number does not fit.

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
            check_integer("staleness_bound", self.staleness_bound, least=0)
        if self.address is not None and not (isinstance(self.address, str) and self.address):
            raise InvalidInputError(
                f"`address` is that of a Ray cluster, as in '10.0.0.1:6379'; received "
                f"{self.address!r}."
            )


@dataclass(frozen=True)
class ServerSettings:
    """A `ParameterServer` of which nothing is open any more."""

    num_workers: int
    num_servers: int
    staleness_bound: int
    snapshot_every: int
    address: str | None


def take_servers(strategy: Any) -> Any:
    """Returns a strategy, or a `ParameterServer` in the place of an object that is one elsewhere.

    Args:
        strategy: What `Trainer` was given. A `tf.distribute.ParameterServerStrategy` has connected
            to its workers and servers, and they are used.
    """
    tasks = backend.current().distribution.adopt_tasks(strategy)
    return strategy if tasks is None else ParameterServer(tasks.num_workers, tasks.num_servers)


def resolve_settings(
    strategy: Any, environ: Mapping[str, str] = os.environ
) -> ServerSettings | None:
    """Returns how a parameter server is set up; `None` for another strategy.

    Args:
        strategy: What `Trainer` was given.
        environ: The environment. Defaults to `os.environ`.

    Raises:
        InvalidInputError: Nobody says how many workers there are, or a variable says something
            else than the argument.
    """
    if strategy == "parameter_server":
        strategy = ParameterServer()
    if not isinstance(strategy, ParameterServer):
        return None
    if keras.backend.backend() == "tensorflow":
        strategy = _with_tf_config(strategy, environ)
    asked = replace(
        strategy,
        num_workers=_agree("num_workers", strategy.num_workers, NUM_WORKERS, environ),
        num_servers=_agree("num_servers", strategy.num_servers, NUM_SERVERS, environ),
        address=strategy.address or environ.get(RAY_ADDRESS) or None,
    )
    if asked.num_workers is None:
        raise InvalidInputError(
            "A parameter server needs to know how many workers there are. Pass "
            "distributed_strategy=training.ParameterServer(num_workers=2), or start the script by "
            "keras-deepseek launch --nproc 4 --strategy parameter_server: a chief, a server and "
            "two workers."
        )
    bound = asked.staleness_bound
    return ServerSettings(
        num_workers=asked.num_workers,
        num_servers=asked.num_servers or 1,
        staleness_bound=2 * asked.num_workers if bound is None else bound,
        snapshot_every=asked.snapshot_every,
        address=asked.address,
    )


def _with_tf_config(strategy: ParameterServer, environ: Mapping[str, str]) -> ParameterServer:
    """Returns a parameter server of as many workers and servers as `TF_CONFIG` names."""
    if strategy.address is not None:
        raise InvalidInputError(
            f"`address` is that of a Ray cluster, for JAX and PyTorch; received "
            f"{strategy.address!r}, and Keras runs on TensorFlow. Name its tasks in TF_CONFIG."
        )
    claims = read_tf_config(environ)
    if not claims.servers:
        return strategy
    found = {"num_workers": len(claims.workers) - 1, "num_servers": len(claims.servers)}
    for name, number in found.items():
        if getattr(strategy, name) not in (None, number):
            raise InvalidInputError(
                f"ParameterServer({name}={getattr(strategy, name)}), and TF_CONFIG names {number}. "
                "Give one of the two."
            )
    return replace(strategy, num_workers=found["num_workers"], num_servers=found["num_servers"])


def _agree(
    name: str, argument: int | None, variable: str, environ: Mapping[str, str]
) -> int | None:
    text = environ.get(variable)
    if text is None:
        return argument
    if not text.isdecimal() or not int(text):
        raise InvalidInputError(f"{variable} is a number above 0; received {text!r}.")
    if argument not in (None, int(text)):
        raise InvalidInputError(
            f"ParameterServer({name}={argument}) and {variable}={text} contradict each other. Give "
            "one of the two."
        )
    return int(text)
