"""Messages between chief, workers and servers: NumPy arrays and plain values only."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array

_LEAST_ROWS = 256
"""Tables with fewer rows are sent whole: to look for the rows would take longer."""


@dataclass(frozen=True)
class SparseRows:
    """A sparse array of `num_rows` rows, of which those without an index are zero."""

    indices: Array
    rows: Array
    num_rows: int


def pack_rows(gradient: Array) -> Array | SparseRows:
    """Returns only the rows that are not zero if they are at most half, else the whole array."""
    if gradient.ndim < 2 or len(gradient) < _LEAST_ROWS:  # noqa: PLR2004 - a table has two axes.
        return gradient
    indices = np.flatnonzero(gradient.any(axis=tuple(range(1, gradient.ndim))))
    if len(indices) * 2 > len(gradient):
        return gradient
    return SparseRows(indices.astype("int32"), gradient[indices], len(gradient))


def unpack_rows(packed: Array | SparseRows) -> Array:
    """Restores the whole array from the result of `pack_rows`, bit by bit."""
    if not isinstance(packed, SparseRows):
        return packed
    whole = np.zeros((packed.num_rows, *packed.rows.shape[1:]), packed.rows.dtype)
    whole[packed.indices] = packed.rows
    return whole


Version = tuple[str, int]
"""The version of a server's weights: the ID of the server's run, and the updates made before."""


@dataclass(frozen=True)
class Shard:
    """The part of a model that one server holds.

    Args:
        variables: Indices of its variables among the model's trainable variables, in their order.
        states: Indices of its states in the list that `kept_states` returns.
    """

    variables: list[int]
    states: list[int]


@dataclass(frozen=True)
class VariablePlan:
    """The description from which a server creates one trainable variable.

    `path` is that of the model's variable. `decays` is true if the optimizer applies weight decay
    to it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    constraint: Any
    decays: bool


@dataclass(frozen=True)
class ShardPlan:
    """The description of the variables and the optimizer of one server."""

    variables: list[VariablePlan]
    optimizer_class: type
    optimizer_config: dict[str, Any]


@dataclass
class ShardValues:
    """The values of all variables of one server.

    Args:
        states: The states that batches change in layers, such as moving averages.
        optimizer: The variables of the optimizer.
        applied: The batches from `settled_below` on whose updates are made.
        settled_below: The updates of all batches below this number are made.
    """

    weights: list[Array]
    states: list[Array]
    optimizer: list[Array]
    num_updates: int
    applied: set[int] = field(default_factory=set)
    settled_below: int = 0

    def has(self, number: int) -> bool:
        """Returns True if the update of a given batch is in these values."""
        return number < self.settled_below or number in self.applied


@dataclass(frozen=True)
class Pulled:
    """A server's answer to a worker that asked for values: weights and states.

    Both are `None` if the worker already has this version.
    """

    version: Version
    weights: list[Array] | None
    states: list[Array] | None


@dataclass(frozen=True)
class Push:
    """A message with the gradients of a batch for one server.

    Args:
        number: The batch. A server makes its update once, however often it comes.
        version: The version of the weights that the gradients were computed from.
        gradients: `None` for a variable that the loss does not depend on.
        changes: The differences that the batch made to layer states.
        rate: The learning rate; `None` if the optimizer has a schedule.
        settled_below: No batch below this number comes again.
    """

    number: int
    version: Version
    gradients: list[Array | SparseRows | None]
    changes: list[Array]
    rate: float | None
    settled_below: int


@dataclass(frozen=True)
class Task:
    """A message with a batch for a worker.

    Args:
        number: The step of the training that the batch is.
        batch: Structure of NumPy arrays.
        rate: The learning rate; `None` if the optimizer has a schedule.
        least_updates: The weights must include at least so many updates.
        settled_below: No batch below this number comes again.
    """

    number: int
    batch: Any
    rate: float | None
    least_updates: int = 0
    settled_below: int = 0


@dataclass(frozen=True)
class Result:
    """The logs and metric changes that a worker has computed for a batch.

    Args:
        logs: The logs of `train_step`, without the metrics.
        metrics: The differences that the batch made to the metrics' variables.
        pushes: Futures of the servers' answers to its update, in their order; empty if the update
            is already made. `None` if a server has restarted and holds no values: then the batch
            must be computed again.
    """

    logs: dict[str, float]
    metrics: list[Array]
    pushes: list[Any] | None


@dataclass(frozen=True)
class WorkerPlan:
    """A message from which a Ray worker builds its model and its step.

    Args:
        trainer: The bytes of `pickled_trainer`.
        variables: The shape, the dtype and `trainable` of each variable of the model.
        batch: A batch of NumPy arrays to compile the step for.
        looks_ahead: True if the worker pulls the next weights while it computes a batch.
    """

    trainer: bytes
    variables: list[tuple[tuple[int, ...], str, bool]]
    shards: list[Shard]
    batch: Any
    looks_ahead: bool
