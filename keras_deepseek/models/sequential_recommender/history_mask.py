"""The causal attention mask of padded histories of items."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_deepseek")
class HistoryMask(keras.Layer):
    """A layer that returns a causal mask: each item attends to itself and earlier items.

    No item attends to padding. Padding attends to itself, because fused attention returns NaN for a
    row without anything to attend to. Item ids are `(batch_size, length)`, 0 for padding; the mask
    is `(batch_size, length, length)`.
    """

    def call(self, item_ids: Any) -> Any:
        indices = ops.arange(ops.shape(item_ids)[1])
        columns, rows = ops.expand_dims(indices, 0), ops.expand_dims(indices, 1)
        is_real = ops.expand_dims(ops.not_equal(item_ids, 0), 1)
        is_earlier = ops.logical_and(ops.less(columns, rows), is_real)
        return ops.logical_or(is_earlier, ops.equal(columns, rows))

    def compute_output_spec(self, item_ids: Any) -> Any:
        return keras.KerasTensor((*item_ids.shape, item_ids.shape[1]), dtype="bool")
