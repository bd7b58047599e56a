"""Divides a batch into micro-batches for gradient accumulation."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError

Batch = tuple[Any, Any, Any]
"""The inputs, the targets and the sample weights, each a structure of tensors or `None`."""


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
        else:
            self._size = ops.maximum(self._size, 1)
            self.number = num_rows // self._size
        self._num_last_rows = num_rows - self.number * self._size

    def take(self, index: Any) -> Batch:
        """Returns micro-batch number `index` of those of full size."""

        def take(array: Any) -> Any:
            whole = array[: self._size * self.number]
            shape = ops.shape(whole)[1:]
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


def count_rows(batch: Batch) -> Any:
    """Returns the number of rows of a batch, as an integer or a scalar tensor."""
    inputs = [array for array in keras.tree.flatten(batch[0]) if array is not None]
    if not inputs:
        raise InvalidInputError("Received a batch without inputs, which can't be trained on.")
    return ops.shape(inputs[0])[0]
