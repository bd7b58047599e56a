"""What the rows of one replica leave in metrics and layers, and what those of all of them do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_training import batch_states, seed_states

_STRIDE = 15_485_863
"""Between the seeds of two replicas: more than a training draws, and thousands fit an int32."""


class ReplicaStates:
    """The variables of a step that differ by replica, until they are made one.

    Metrics count what all replicas have counted. What layers keep of a batch, such as moving
    statistics, is the mean over the rows of all. Random number generators differ by replica while
    the step computes, and agree afterwards.

    Args:
        model: `keras.Model`, built and compiled.
    """

    def __init__(self, model: keras.Model) -> None:
        self._metrics = model.metrics_variables
        floats = [each for each in batch_states(model) if keras.backend.is_float_dtype(each.dtype)]
        self._layers = list({id(each): each for each in floats}.values())
        self._seeds = seed_states(model)
        self._before = [ops.copy(each.value) for each in (*self._metrics, *self._layers)]

    @contextmanager
    def own_seeds(self, rank: Any) -> Iterator[None]:
        """Makes the random numbers of a replica others than those of the rest, inside of the block.

        Args:
            rank: Which replica it is: an integer, or an integer tensor.
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
        """Puts back what the rows of another replica have changed, in the same process."""
        variables = (*self._metrics, *self._layers)
        for variable, before in zip(variables, self._before, strict=True):
            variable.assign(before)

    def changes(self, num_rows: Any) -> list[Any]:
        """Returns what this replica's rows have changed, to be summed over all.

        Args:
            num_rows: float32 scalar. The number of its rows, `0.0` where it has computed none of
                its own.
        """
        changes = [
            ops.cast(variable.value, "float32") - ops.cast(before, "float32")
            for variable, before in zip((*self._metrics, *self._layers), self._before, strict=True)
        ]
        num_metrics = len(self._metrics)
        weights = [1.0] * num_metrics + [num_rows] * len(self._layers)
        return [
            ops.where(num_rows > 0, change * weight, ops.zeros_like(change))
            for change, weight in zip(changes, weights, strict=True)
        ]

    def write(self, sums: Sequence[Any], num_rows: Any) -> None:
        """Changes the variables by what the rows of all replicas have changed.

        Args:
            sums: The sums of `changes`.
            num_rows: float32 scalar. The number of all rows.
        """
        num_metrics = len(self._metrics)
        divisors = [1.0] * num_metrics + [ops.maximum(num_rows, 1.0)] * len(self._layers)
        variables = (*self._metrics, *self._layers)
        for variable, before, change, divisor in zip(
            variables, self._before, sums, divisors, strict=True
        ):
            variable.assign(before + ops.cast(change / divisor, variable.dtype))
