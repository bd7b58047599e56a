"""Attention of new tokens to the cached blocks that they see, as `SparseAttention` decodes.

The counterpart of `block_sparse_attention` where queries are few and begin anywhere. What a row of
blocks sees is looked up by its number, which may be known only when the step runs, so a step costs
what the row that sees most costs, however long the cache is.

Legend: B batch, S slots of the cache, L new tokens, H heads, G heads of keys and values, D size of
a head, R rows of queries, Q queries in a row, K keys in a row.
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
    """Returns softmax(QKᵀ / sqrt(D)) V over what a causal layout shows of a cache.

    Args:
        query: Tensor of shape `(B, L, H, D)`. Those of the slots from `start` on.
        cache: dict. `"key"` and `"value"`, of shape `(B, S, G, D)`, and `"mask"`, of shape
            `(B, S)`, with the new tokens in them.
        start: integer or integer scalar tensor.
        layout: `BlockLayout` that covers S positions.
        dropout: Function of the attention weights, or `None`. Defaults to `None`.

    Returns:
        A tensor of shape `(B, L, H, D)`, with the D of `"value"`.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups = cache["key"].shape[2]
    # A single token is a row of its own. More stand in the rows of their blocks, of which the
    # first and the last may be filled in part: with copies, whose outputs are left out.
    size = 1 if length == 1 else layout.block_size
    num_rows = (length + size - 2) // size + 1
    start = ops.cast(start, "int32")
    offset = start % size
    places = ops.arange(num_rows * size, dtype="int32") - offset
    rows = split_rows(
        ops.take(query * dim**-0.5, ops.clip(places, 0, length - 1), axis=1), num_rows, num_groups
    )
    positions = ops.reshape(start + places, (num_rows, size, 1))
    numbers = start // layout.block_size + ops.arange(num_rows, dtype="int32")
    slots, first, last = _look_up(layout, cache["mask"].shape[1], numbers)

    is_shown = ops.logical_and(first[:, None] <= positions, positions <= last[:, None])
    is_real = ops.take(cache["mask"], slots, axis=1)
    is_shown = ops.logical_and(is_shown, is_real[:, :, None])  # Of shape (B, R, Q, K).
    is_shown = ops.tile(is_shown, (1, 1, num_heads // num_groups, 1))[:, None]
    key, value = (
        ops.transpose(ops.take(cache[name], slots, axis=1), (0, 3, 1, 2, 4))
        for name in ("key", "value")
    )
    outputs = join_rows(attend_rows(rows, key, value, is_shown, dropout), num_heads)
    return ops.take(outputs, offset + ops.arange(length, dtype="int32"), axis=1)


def _look_up(layout: BlockLayout, num_slots: int, numbers: Any) -> list[Any]:
    """Returns the slots that rows see, and the first and last query of each, of shape (R, K)."""
    table = plan_rows(layout, num_slots)
    slots = table.keys[..., None] * layout.block_size + np.arange(layout.block_size)
    slots = np.minimum(slots, num_slots - 1).reshape(len(slots), -1).astype("int32")
    numbers = ops.minimum(numbers, len(slots) - 1)  # Beyond the end stand copies alone.
    tables = (slots, table.first_query, table.last_query)
    return [ops.take(array, numbers, axis=0) for array in tables]
