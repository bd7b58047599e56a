"""Gradient accumulation: the gradients of a batch as the sum over its micro-batches."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.profiling.step_trace import BACKWARD
from keras_deepseek.training.step.gradients.batch_gradients import PartGradients, SummedGradients
from keras_deepseek.training.step.gradients.micro_batches import (
    Batch,
    MicroBatches,
    check_same_rows,
    count_rows,
)
from keras_deepseek.training.step.gradients.weighted_sums import WeightedSums


class AccumulatedGradients(SummedGradients):
    """Sums the gradients of micro-batches, and divides them by the weight of the whole batch.

    Args:
        assigned: Function that returns the variables that a forward pass may assign.
        is_sum: True if the loss is a sum over the rows, and not a mean.
    """

    def __init__(
        self,
        part: PartGradients,
        num_micro_batches: int,
        assigned: Callable[[], Sequence[keras.Variable]],
        *,
        is_sum: bool,
    ) -> None:
        super().__init__(part, is_sum=is_sum)
        self._number = num_micro_batches
        self._assigned = assigned

    def sum(self, batch: Batch, variables: Sequence[keras.Variable]) -> tuple[WeightedSums, Any]:
        check_same_rows(batch, count_rows(batch))
        pieces = MicroBatches(batch, self._number)
        first, factor = self._part.sum(pieces.take(0), variables)
        with backend.current().step.mark(BACKWARD):
            first = first.scale_gradients(factor)

        def add(piece: Batch, tensors: Sequence[Any]) -> Sequence[Any]:
            piece_sums, factor = self._part.sum(piece, variables)
            with backend.current().step.mark(BACKWARD):
                return first.with_tensors(tensors).plus(piece_sums, factor).tensors()

        tensors: Sequence[Any] = backend.current().compute.repeat(
            lambda index, *tensors: add(pieces.take(index + 1), tensors),
            pieces.number - 1,
            first.tensors(),
            self._assigned(),
        )
        return first.with_tensors(pieces.add_rest(add, tensors)), 1.0

    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        return self._part.count_kept_bytes(MicroBatches(batch, self._number).take(0), variables)
