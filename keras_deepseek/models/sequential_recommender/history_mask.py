"""Which items of a history see which others."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_deepseek")
class HistoryMask(keras.Layer):
    """Returns a mask by which each item sees itself and the real ones before it.

    Padding sees itself: a row that saw nothing would be NaN where attention is fused.

    Args:
        **kwargs: Arguments of `keras.Layer`, such as `name`.

    Call arguments:
        item_ids: Integer tensor of shape `(batch_size, length)`, 0 where there is no item.

    Returns:
        A boolean tensor of shape `(batch_size, length, length)`.
    """

    def call(self, item_ids: Any) -> Any:
        places = ops.arange(ops.shape(item_ids)[1])
        columns, rows = ops.expand_dims(places, 0), ops.expand_dims(places, 1)
        is_real = ops.expand_dims(ops.not_equal(item_ids, 0), 1)
        before = ops.logical_and(ops.less(columns, rows), is_real)
        return ops.logical_or(before, ops.equal(columns, rows))

    def compute_output_spec(self, item_ids: Any) -> Any:
        return keras.KerasTensor((*item_ids.shape, item_ids.shape[1]), dtype="bool")
