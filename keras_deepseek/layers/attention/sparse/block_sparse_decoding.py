"""Decoding for `SparseAttention`: attention of new tokens to the visible blocks of a cache.

It complements `block_sparse_attention` for a few queries at any place. It looks up the blocks of a
row by the row's number, which may be known only at run time. A step therefore costs as much as the
row with the most visible blocks, however long the cache is.

Shape suffixes: B batch, S slots of the cache, L new tokens, N heads, G heads of keys and values, H
size of a head, R rows of queries, Q queries in a row, K keys in a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.layers.attention.sparse.block_layout import BlockLayout
from keras_deepseek.layers.attention.sparse.block_plan import plan_rows
from keras_deepseek.layers.attention.sparse.block_sparse_attention import (
    attend_rows,
    join_rows,
    split_rows,
)


def block_sparse_decoding(
    query: Any,
    cache: dict[str, Any],
    start: Any,
    layout: BlockLayout,
    dropout: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns softmax(QKᵀ / sqrt(H)) V over the keys of a cache that a causal layout shows (BLNH).

    Queries (BLNH) are those of the slots from `start` on. The cache has `"key"` and `"value"`
    (BSGH) and `"mask"` (BS), with the new tokens in them. The H of values may differ; the result
    has this H. The layout covers S positions.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups = cache["key"].shape[2]
    # A single token is a row by itself. More tokens stand in the rows of their blocks. The first
    # and the last row may be partly filled with copies, whose outputs are dropped.
    size = 1 if length == 1 else layout.block_size
    num_rows = (length + size - 2) // size + 1
    start = ops.cast(start, "int32")
    offset = start % size
    indices = ops.arange(num_rows * size, dtype="int32") - offset
    query_BGRQH = split_rows(
        ops.take(query * dim**-0.5, ops.clip(indices, 0, length - 1), axis=1), num_rows, num_groups
    )
    positions_RQ1 = ops.reshape(start + indices, (num_rows, size, 1))
    rows_R = start // layout.block_size + ops.arange(num_rows, dtype="int32")
    slots_RK, first_RK, last_RK = _look_up(layout, cache["mask"].shape[1], rows_R)

    is_visible_RQK = ops.logical_and(
        first_RK[:, None] <= positions_RQ1, positions_RQ1 <= last_RK[:, None]
    )
    is_real_BRK = ops.take(cache["mask"], slots_RK, axis=1)
    is_visible_BRQK = ops.logical_and(is_visible_RQK, is_real_BRK[:, :, None])
    # Heads of queries that share a head of keys are further queries of a row.
    is_visible_B1RQK = ops.tile(is_visible_BRQK, (1, 1, num_heads // num_groups, 1))[:, None]
    key_BGRKH, value_BGRKH = (
        ops.transpose(ops.take(cache[name], slots_RK, axis=1), (0, 3, 1, 2, 4))
        for name in ("key", "value")
    )
    outputs_BGRQH = attend_rows(query_BGRQH, key_BGRKH, value_BGRKH, is_visible_B1RQK, dropout)
    outputs = join_rows(outputs_BGRQH, num_heads)
    return ops.take(outputs, offset + ops.arange(length, dtype="int32"), axis=1)


def _look_up(layout: BlockLayout, num_slots: int, numbers: Any) -> list[Any]:
    """Returns the key slots that rows see, and the first and last query that sees each one (RK)."""
    table = plan_rows(layout, num_slots)
    slots = table.keys[..., None] * layout.block_size + np.arange(layout.block_size)
    slots = np.minimum(slots, num_slots - 1).reshape(len(slots), -1).astype("int32")
    numbers = ops.minimum(numbers, len(slots) - 1)  # Rows beyond the end hold only copies.
    tables = (slots, table.first_query, table.last_query)
    return [ops.take(array, numbers, axis=0) for array in tables]
