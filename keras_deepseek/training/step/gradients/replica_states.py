"""The merging of each replica's metric and layer state into that of the whole batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import batch_states, seed_states

_STRIDE = 15_485_863
"""The distance of the seeds of two replicas: more than a training draws; thousands fit an int32."""


class ReplicaStates:
    """Merges the state that the replicas of a step have changed.

    Metrics are summed over the replicas. The state of layers, such as moving statistics, is
    averaged over all rows; if the `aggregation` of a variable is `"sum"`, as for the tokens of each
    expert, it is the sum of the assigned values. The seeds of random numbers differ between
    replicas during a step, and are equal again after it.

    Args:
        model: `keras.Model`, built and compiled.
    """

    def __init__(self, model: keras.Model) -> None:
        self._metrics = model.metrics_variables
        floats = [each for each in batch_states(model) if keras.backend.is_float_dtype(each.dtype)]
        layers = {id(each): each for each in floats}.values()
        self._layers = [each for each in layers if each.aggregation != "sum"]
        self._counts = [each for each in layers if each.aggregation == "sum"]
        self._seeds = seed_states(model)
        self._variables = (*self._metrics, *self._layers, *self._counts)
        self._before = [ops.copy(each.value) for each in self._variables]

    @contextmanager
    def replica_seeds(self, rank: Any) -> Iterator[None]:
        """Gives a replica its own random numbers until the block ends.

        Args:
            rank: integer or integer tensor. The index of the replica.
        """
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
        """Restores the variables that another replica of this process has changed."""
        for variable, before in zip(self._variables, self._before, strict=True):
            variable.assign(before)

    def changes(self, num_rows: Any) -> list[Any]:
        """Returns the changes by this replica's rows, to be summed over all replicas.

        Args:
            num_rows: float32 scalar. The number of its rows, or `0.0` if it has none.
        """
        changes = [
            ops.cast(variable.value, "float32") - ops.cast(before, "float32")
            for variable, before in zip(self._variables, self._before, strict=True)
        ]
        num_added = len(self._metrics) + len(self._layers)
        weights = [1.0] * len(self._metrics) + [num_rows] * len(self._layers)
        added = [
            change * weight for change, weight in zip(changes[:num_added], weights, strict=True)
        ]
        counted = [ops.cast(variable.value, "float32") for variable in self._counts]
        # A variable that no replica assigns must keep its value.
        is_assigned = [ops.cast(ops.any(each != 0), "float32") for each in changes[num_added:]]
        return [
            ops.where(num_rows > 0, each, ops.zeros_like(each))
            for each in (*added, *counted, *is_assigned)
        ]

    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        """Applies the changes of all replicas to the variables.

        Args:
            sums: The sums of `changes` over the replicas.
            num_rows: float32 scalar. The number of rows of all replicas.
        """
        num_added, num_counts = len(self._metrics) + len(self._layers), len(self._counts)
        divisors = [1.0] * len(self._metrics)
        divisors += [ops.maximum(num_rows, 1.0)] * len(self._layers)
        added = self._variables[:num_added], self._before[:num_added], sums[:num_added], divisors
        for variable, before, change, divisor in zip(*added, strict=True):
            variable.assign(before + ops.cast(change / divisor, variable.dtype))
        counted, is_assigned = sums[num_added:][:num_counts], sums[num_added:][num_counts:]
        for variable, before, count, number in zip(
            self._counts, self._before[num_added:], counted, is_assigned, strict=True
        ):
            variable.assign(ops.where(number > 0, ops.cast(count, variable.dtype), before))
