"""What chief, workers and servers tell each other; NumPy arrays and plain values alone."""

from dataclasses import dataclass, field
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.training.parameter_server.shards import Shard
from keras_deepseek.training.parameter_server.sparse_rows import SparseRows

Version = tuple[str, int]
"""Of the weights of a server: which life of it, and the updates that it has made."""


@dataclass(frozen=True)
class VariablePlan:
    """A trainable variable, as a server makes one.

    Args:
        path: string. That of the model's variable.
        shape: tuple of integers.
        dtype: string.
        constraint: Keras constraint, or `None`.
        decays: boolean. Whether the optimizer's weight decay is for it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    constraint: Any
    decays: bool


@dataclass(frozen=True)
class ShardPlan:
    """What a server is to be.

    Args:
        variables: list of `VariablePlan`.
        optimizer_class: The class of the optimizer.
        optimizer_config: dict. Its config.
    """

    variables: list[VariablePlan]
    optimizer_class: type
    optimizer_config: dict[str, Any]


@dataclass
class ShardValues:
    """All that a server holds.

    Args:
        weights: list of NumPy arrays, of the trainable variables.
        states: list of NumPy arrays, of what batches leave in layers.
        optimizer: list of NumPy arrays, of the optimizer's variables.
        num_updates: integer. How many updates were made.
        applied: set of integers. The batches whose updates are in it, from `settled_below` on.
        settled_below: integer. All batches below this one are in it.
    """

    weights: list[Array]
    states: list[Array]
    optimizer: list[Array]
    num_updates: int
    applied: set[int] = field(default_factory=set)
    settled_below: int = 0

    def has(self, number: int) -> bool:
        """Returns whether the update of a batch is in it."""
        return number < self.settled_below or number in self.applied


@dataclass(frozen=True)
class Pulled:
    """The weights of a server.

    Args:
        version: `Version`.
        weights: list of NumPy arrays; `None` where the worker has this version.
        states: list of NumPy arrays, likewise.
    """

    version: Version
    weights: list[Array] | None
    states: list[Array] | None


@dataclass(frozen=True)
class Push:
    """What a worker has found for a server.

    Args:
        number: integer. The batch: its update is made once, however often it comes.
        version: `Version` of the weights that it was computed from.
        gradients: list of NumPy arrays, `SparseRows`, or `None` for variables that the loss does
            not depend on.
        changes: list of NumPy arrays. By how much the batch has changed what stays in layers.
        rate: float. The learning rate, or `None` where a schedule says it.
        settled_below: integer. No batch below this one comes again.
    """

    number: int
    version: Version
    gradients: list[Array | SparseRows | None]
    changes: list[Array]
    rate: float | None
    settled_below: int


@dataclass(frozen=True)
class Task:
    """A batch for a worker.

    Args:
        number: integer. The step of the training that it is.
        batch: Structure of NumPy arrays.
        rate: float. The learning rate, or `None` where a schedule says it.
        least_updates: integer. The fewest updates that the weights must have in them.
        settled_below: integer. No batch below this one comes again.
    """

    number: int
    batch: Any
    rate: float | None
    least_updates: int = 0
    settled_below: int = 0


@dataclass(frozen=True)
class Result:
    """What a worker has made of a batch.

    Args:
        logs: dict of floats by name: what `train_step` logs beside the metrics.
        metrics: list of NumPy arrays. By how much the batch has changed the metrics' variables.
        pushes: list of futures of the servers' answers, `None` where a server knows nothing: it has
            begun anew, and the batch must be computed again.
    """

    logs: dict[str, float]
    metrics: list[Array]
    pushes: list[Any] | None


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker is to be.

    Args:
        trainer: bytes. See `packed_trainer`.
        variables: list of the shape, the dtype and whether it is trainable, of each variable.
        shards: list of `Shard`.
        batch: Structure of NumPy arrays: a first batch to compile for.
        looks_ahead: boolean. Whether weights are pulled while a batch is computed.
    """

    trainer: bytes
    variables: list[tuple[tuple[int, ...], str, bool]]
    shards: list[Shard]
    batch: Any
    looks_ahead: bool
