"""Gradient accumulation: the gradients of a batch as the sum over its micro-batches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.profiling.step_trace import BACKWARD
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.batch_part import Part, PartFunction, make_summed_part
from keras_deepseek.training.step.gradients.weighted_sums import WeightedSums
from keras_deepseek.training.step.loss.batch_loss import Batch, count_rows


def sum_micro_batches(
    part: PartFunction,
    number: int,
    assigned: Callable[[], Sequence[keras.Variable]],
    batch: Batch,
    variables: Sequence[keras.Variable],
) -> Part:
    """Sums the gradients of `number` micro-batches, one after another.

    `part` computes one of them. `assigned` returns the variables that its forward pass may assign.
    """
    check_same_rows(batch, num_rows := count_rows(batch))
    micro_batches = MicroBatches(batch, number)

    def compute(micro_batch: Batch) -> tuple[WeightedSums, Any]:
        """Returns the sums, and the factor by which their gradients are yet to be multiplied."""
        computed = part(micro_batch, variables)
        with backend.current().step.mark(BACKWARD):
            return replace(computed.sums, gradients=computed.backward()), computed.factor

    # The first micro-batch gives the totals their structure; the loop adds the others.
    first, factor = compute(micro_batches.take(0))
    with backend.current().step.mark(BACKWARD):
        first = first.scale_gradients(factor)

    def add(micro_batch: Batch, tensors: Sequence[Any]) -> Sequence[Any]:
        totals = first.with_tensors(tensors)
        sums, factor = compute(micro_batch)
        with backend.current().step.mark(BACKWARD):
            return totals.plus(sums, factor).tensors()

    tensors: Sequence[Any] = backend.current().compute.repeat(
        lambda index, *tensors: add(micro_batches.take(index + 1), tensors),
        micro_batches.number - 1,
        first.tensors(),
        assigned(),
    )
    return make_summed_part(first.with_tensors(micro_batches.add_rest(add, tensors)), num_rows)


class MicroBatches:
    """The micro-batches of a batch: all of one size, and perhaps a smaller last one.

    Micro-batch `i` of `n` takes the rows `i::n`. So each micro-batch has rows of every device if
    the batch is spread over devices, and no row moves to another device.

    Args:
        number: integer. The number of micro-batches, if there are enough rows.
    """

    def __init__(self, batch: Batch, number: int) -> None:
        self._batch = batch
        num_rows = count_rows(batch)
        self._size = -(-num_rows // number)
        if isinstance(num_rows, int):
            self.number = num_rows // self._size
        else:  # On TensorFlow, the number may be unknown until the step runs.
            self._size = ops.maximum(self._size, 1)
            self.number = num_rows // self._size
        self._num_last_rows = num_rows - self.number * self._size

    def take(self, index: Any) -> Batch:
        """Returns micro-batch number `index` of those of full size."""

        def take(array: Any) -> Any:
            whole = array[: self._size * self.number]
            shape = ops.shape(whole)[1:]
            # The rows `index::number`.
            return ops.reshape(whole, (self._size, self.number, *shape))[:, index]

        return _map_arrays(take, self._batch)

    def add_rest(
        self, add: Callable[[Batch, Sequence[Any]], Sequence[Any]], sums: Sequence[Any]
    ) -> Sequence[Any]:
        """Adds the smaller last micro-batch to `sums` by `add`; without one, returns `sums`."""

        def add_last() -> Sequence[Any]:
            start = self._size * self.number
            return add(_map_arrays(lambda array: array[start:], self._batch), sums)

        if isinstance(self._num_last_rows, int):
            return add_last() if self._num_last_rows else sums
        added: Sequence[Any] = ops.cond(self._num_last_rows > 0, add_last, lambda: list(sums))
        return added


def _map_arrays(function: Callable[[Any], Any], batch: Batch) -> Batch:
    mapped: Batch = keras.tree.map_structure(
        lambda array: None if array is None else function(ops.convert_to_tensor(array)), batch
    )
    return mapped


def pad_empty_batch(batch: Batch) -> Batch:
    """Returns a batch, or one row of zeros if the batch has no rows."""

    def pad(array: Any) -> Any:
        num_rows = ops.shape(array)[0]
        if isinstance(num_rows, int) and num_rows:
            return array
        zeros = ops.zeros((1, *ops.shape(array)[1:]), array.dtype)
        return ops.concatenate([array, zeros])[: ops.maximum(num_rows, 1)]

    return _map_arrays(pad, batch)


def check_same_rows(batch: Batch, num_rows: Any) -> None:
    """Raises an error if `y` or `sample_weight` has another number of rows than `x`."""
    if not isinstance(num_rows, int):  # On TensorFlow it may be unknown until the step runs.
        return
    for name, part in zip(("targets", "sample weights"), batch[1:], strict=True):
        for array in keras.tree.flatten(part):
            if array is not None and array.shape[0] not in (None, num_rows):
                raise InvalidInputError(
                    f"A batch of {num_rows} inputs has {array.shape[0]} {name}, and can't be "
                    "divided into micro-batches. Give as many of each."
                )
