"""Integers that say which row of a table is meant, where they may also say one that is none."""

from typing import Any

import keras
from keras import ops

_WIDE = ("int32", "uint32", "int64", "uint64")


def bound_indices(values: Any, count: Any) -> tuple[Any, Any]:
    """Returns int32 indices of rows, 0 in place of those that are none, and which are some.

    Frameworks do not agree on what they gather outside of a table: one fails, one takes the last
    row, one gives zeros, and another thing once it is compiled. What shows in its place, such as
    NaN, is for the layer to say: an error would need the numbers, which nobody has while a step is
    traced.

    Args:
        values: Integer tensor.
        count: integer or integer scalar tensor. The number of rows.
    """
    if keras.backend.standardize_dtype(values.dtype) not in _WIDE:
        values = ops.cast(values, "int32")  # The count need not fit into the dtype of bytes.
    limit = count if isinstance(count, int) else ops.cast(count, values.dtype)
    exists = ops.logical_and(values >= 0, values < limit)
    return ops.cast(ops.where(exists, values, 0), "int32"), exists
