"""Replacement of indices that are outside an embedding or other table."""

from typing import Any

import keras
from keras import ops

_WIDE = ("int32", "uint32", "int64", "uint64")


def bound_indices(values: Any, count: Any) -> tuple[Any, Any]:
    """Returns int32 row indices with invalid ones replaced by 0, and a mask of the valid ones.

    Frameworks treat an index outside a table differently: one raises an error, one takes the last
    row, one returns zeros, and compiled code may differ again. The layer decides what to return
    there, such as NaN. It can't raise an error, because values are unknown while a step is traced.
    """
    if keras.backend.standardize_dtype(values.dtype) not in _WIDE:
        values = ops.cast(values, "int32")  # The count may not fit into 8 or 16 bits.
    limit = count if isinstance(count, int) else ops.cast(count, values.dtype)
    exists = ops.logical_and(values >= 0, values < limit)
    return ops.cast(ops.where(exists, values, 0), "int32"), exists
