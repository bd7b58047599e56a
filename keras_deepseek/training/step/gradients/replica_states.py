"""Merges each replica's metric and layer state into that of the whole batch."""

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import batch_states, seed_states

_STRIDE = 15_485_863
"""The distance between the seeds of two replicas.

It is more than a training draws, and thousands of them fit into an int32.
"""


class ReplicaStates:
    """The variables that each replica's rows change, until the replicas' values are merged.

    Metrics are summed. The state of layers, such as moving statistics, is the mean over all rows;
    with `aggregation="sum"`, as for the tokens of each expert, it is the sum. Random number
    generators differ by replica while the step computes, and agree afterwards.
    """

    def __init__(self, model: keras.Model) -> None:
        floats = [
            state for state in batch_states(model) if keras.backend.is_float_dtype(state.dtype)
        ]
        layers = {id(state): state for state in floats}.values()
        self._merges: list[_Merge] = [
            *(_Added(metric_variable) for metric_variable in model.metrics_variables),
            *(_Averaged(state) for state in layers if state.aggregation != "sum"),
            *(_Summed(state) for state in layers if state.aggregation == "sum"),
        ]
        self._seeds = seed_states(model)

    @contextmanager
    def replica_seeds(self, rank: Any) -> Iterator[None]:
        """Gives a replica its own random numbers."""
        distances = [
            ops.cast(rank, seed.dtype) * ops.cast(_STRIDE, seed.dtype) for seed in self._seeds
        ]
        self._move_seeds(ops.add, distances)
        try:
            yield
        finally:
            self._move_seeds(ops.subtract, distances)

    def _move_seeds(self, move: Callable[[Any, Any], Any], distances: Sequence[Any]) -> None:
        for seed, distance in zip(self._seeds, distances, strict=True):
            seed.assign(move(seed.value, ops.stack([distance, ops.zeros_like(distance)])))

    def restore(self) -> None:
        """Undoes the state changes by another replica of this process."""
        for merge in self._merges:
            merge.variable.assign(merge.old_value)

    def changes(self, num_rows: Any) -> list[Any]:
        """Returns this replica's state changes, to be summed over all replicas.

        Args:
            num_rows: float32 scalar. The replica's own rows; with `0.0`, all changes are zero.
        """
        changes = [change for merge in self._merges for change in merge.changes(num_rows)]
        return [ops.where(num_rows > 0, change, ops.zeros_like(change)) for change in changes]

    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        """Writes the merged state into the variables.

        Args:
            sums: The sums of `changes` over all replicas.
            num_rows: float32 scalar. The rows of all replicas.
        """
        remaining = iter(sums)
        for merge in self._merges:
            merge.write([next(remaining) for _ in range(merge.num_changes)], num_rows)


class _Merge(abc.ABC):
    """The base class of rules for merging one variable of all replicas."""

    num_changes = 1

    def __init__(self, variable: keras.Variable) -> None:
        self.variable = variable
        self.old_value = ops.copy(variable.value)

    def _change(self) -> Any:
        return ops.cast(self.variable.value, "float32") - ops.cast(self.old_value, "float32")

    @abc.abstractmethod
    def changes(self, num_rows: Any) -> list[Any]:
        """Returns `num_changes` float32 tensors, which are summed over all replicas."""

    @abc.abstractmethod
    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        """Assigns the merged value to the variable."""


class _Added(_Merge):
    """A merge that adds the changes of all replicas."""

    def changes(self, num_rows: Any) -> list[Any]:
        return [self._change()]

    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        self.variable.assign(self.old_value + ops.cast(sums[0], self.variable.dtype))


class _Averaged(_Merge):
    """A merge that averages the changes over the rows of all replicas."""

    def changes(self, num_rows: Any) -> list[Any]:
        return [self._change() * num_rows]

    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        mean = sums[0] / ops.maximum(num_rows, 1.0)
        self.variable.assign(self.old_value + ops.cast(mean, self.variable.dtype))


class _Summed(_Merge):
    """A merge that sums the assigned values, and keeps a variable that no replica assigned."""

    num_changes = 2

    def changes(self, num_rows: Any) -> list[Any]:
        is_assigned = ops.cast(ops.any(self._change() != 0), "float32")
        return [ops.cast(self.variable.value, "float32"), is_assigned]

    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        total, num_assigned = sums
        value = ops.cast(total, self.variable.dtype)
        self.variable.assign(ops.where(num_assigned > 0, value, self.old_value))
