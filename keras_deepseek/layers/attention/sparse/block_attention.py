"""Block-sparse attention by a block plan: multiplies queries only with blocks that they see.

A row is a few blocks of queries with the blocks of keys that they see. The rows of a row group see
equally many blocks of keys. `block_plan` says what to compute; the layers project queries, keys and
values. Blocks of keys and values are gathered by a table that is known in advance, in the same way
for all layouts and backends. Shifted slices instead of the table were not reliably faster, and
compiled longer.

A few new tokens attend to a cache by another function. It looks up the blocks of a row by the row's
number, which may be known only at run time. A step therefore costs as much as the row with the most
visible blocks, however long the cache is.

Shape suffixes: B batch, S length or slots of a cache, L new tokens, N heads, G heads of keys and
values, H size of a head, M blocks, T positions in a block, and in a group of rows: R rows, Q
queries in a row, K keys in a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.layers.attention.compressed.token_packing import take_rows
from keras_deepseek.layers.attention.sparse.block_plan import (
    BlockLayout,
    BlockPlan,
    RowGroup,
    plan_rows,
)
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.masks import HIDDEN
from keras_deepseek.layers.position.start_index import by_row


def attend_to_blocks(
    query: Any,
    key: Any,
    value: Any,
    plan: BlockPlan,
    key_mask: Any = None,
    dropout: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns softmax(QKᵀ / sqrt(H)) V over visible keys (BSNH); zeros for queries that see none.

    Queries are (BSNH), keys and values (BSGH). G divides N; consecutive heads of queries share a
    head of keys. The H of values may differ; the result has this H. `key_mask` (BS) hides a key
    from all queries where it is false.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups = key.shape[2]
    query_BGMQH = _to_blocks(query * dim**-0.5, plan, num_groups)
    key_BGMTH = _to_blocks(key, plan, num_groups)
    value_BGMTH = _to_blocks(value, plan, num_groups)
    mask_B1MT1 = None
    if key_mask is not None:
        mask_B1MT1 = _to_blocks(ops.cast(key_mask, "bool")[..., None, None], plan, 1)
    outputs = [
        _attend_group(query_BGMQH, key_BGMTH, value_BGMTH, group, mask_B1MT1, dropout)
        for group in plan.groups
    ]
    output_BGMQH = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, 2)
    output_BGMQH = _take_blocks(output_BGMQH, plan.order[:, None])
    return join_rows(output_BGMQH, num_heads)[:, :length]


def _to_blocks(x_BSNH: Any, plan: BlockPlan, num_groups: int) -> Any:
    """Reshapes BSNH to (B, G, M, N/G * T, H), padded with zeros."""
    fill = plan.num_blocks * plan.block_size - x_BSNH.shape[1]
    if fill:
        x_BSNH = ops.pad(x_BSNH, ((0, 0), (0, fill), (0, 0), (0, 0)))
    return split_rows(x_BSNH, plan.num_blocks, num_groups)


def split_rows(x: Any, num_rows: int, num_groups: int) -> Any:
    """Reshapes queries, keys or values (B, R * T, N, H) to rows (B, G, R, N/G * T, H)."""
    length, num_heads, dim = x.shape[1:]
    size, ratio = length // num_rows, num_heads // num_groups
    x = ops.reshape(x, (-1, num_rows, size, num_groups, ratio, dim))
    x = ops.transpose(x, (0, 3, 1, 4, 2, 5))
    return ops.reshape(x, (-1, num_groups, num_rows, ratio * size, dim))


def join_rows(x: Any, num_heads: int) -> Any:
    """Reshapes rows (B, G, R, N/G * T, H) back to (B, R * T, N, H)."""
    num_groups, num_rows, num_queries, dim = x.shape[1:]
    ratio = num_heads // num_groups
    size = num_queries // ratio
    x = ops.reshape(x, (-1, num_groups, num_rows, ratio, size, dim))
    x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
    return ops.reshape(x, (-1, num_rows * size, num_heads, dim))


def _attend_group(
    query_BGMQH: Any,
    key_BGMTH: Any,
    value_BGMTH: Any,
    group: RowGroup,
    mask_B1MT1: Any,
    dropout: Callable[[Any], Any] | None,
) -> Any:
    """Computes the attention outputs of a row group's query blocks, in block order (BGMQH)."""
    num_groups, _, num_queries = query_BGMQH.shape[1:4]
    query_BGRQH = _take_blocks(query_BGMQH, group.queries)
    key_BGRKH = _take_blocks(key_BGMTH, group.keys)
    value_BGRKH = _take_blocks(value_BGMTH, group.keys)
    is_visible = _visible_keys(group, num_queries, key_BGRKH.shape[3] // group.keys.shape[1])
    if mask_B1MT1 is not None:
        mask_B1RK = ops.squeeze(_take_blocks(mask_B1MT1, group.keys), -1)
        is_visible = ops.logical_and(is_visible, mask_B1RK[:, :, :, None])
    output_BGRQH = attend_rows(query_BGRQH, key_BGRKH, value_BGRKH, is_visible, dropout)
    return ops.reshape(
        output_BGRQH, (-1, num_groups, group.queries.size, num_queries, value_BGRKH.shape[-1])
    )


def attend_rows(
    query_BGRQH: Any,
    key_BGRKH: Any,
    value_BGRKH: Any,
    is_visible: Any,
    dropout: Callable[[Any], Any] | None,
) -> Any:
    """Computes attention (BGRQH) of rows of queries, where each row has its own keys.

    Queries are scaled. The H of values may differ; the result has this H. `is_visible` broadcasts
    to BGRQK.
    """
    scores_BGRQK = ops.einsum("bgrqh,bgrkh->bgrqk", query_BGRQH, key_BGRKH)
    weights_BGRQK = ops.cast(weigh_keys(scores_BGRQK, is_visible), value_BGRKH.dtype)
    if dropout is not None:
        weights_BGRQK = dropout(weights_BGRQK)
    output_BGRQH = ops.einsum("bgrqk,bgrkh->bgrqh", weights_BGRQK, value_BGRKH)
    # For a query that sees no key, the softmax spread over hidden keys.
    has_keys = ops.any(is_visible, -1, keepdims=True)
    return ops.where(has_keys, output_BGRQH, ops.zeros_like(output_BGRQH))


def weigh_keys(scores: Any, is_visible: Any) -> Any:
    """Returns the softmax of scores over visible keys, in float32.

    Keys are the last axis. If none is visible, it goes over all. `is_visible` broadcasts to the
    shape of the scores.
    """
    scores = ops.cast(scores, promote_dtypes(scores.dtype, "float32"))
    scores = scores + HIDDEN * ops.cast(ops.logical_not(is_visible), scores.dtype)
    # Keras warns of a softmax over a single key.
    return ops.softmax(scores) if scores.shape[-1] > 1 else ops.ones_like(scores)


def _visible_keys(group: RowGroup, num_queries: int, block_size: int) -> Any:
    """Returns a mask (RQK) of a row group: true where a query sees a key; `num_queries` is Q."""
    positions = group.queries[..., None, None] * block_size + np.arange(block_size)
    ratio = num_queries // block_size  # Heads of queries that share a head of keys.
    positions_RQ1 = np.repeat(positions, ratio, axis=2).reshape(len(group.queries), -1, 1)
    positions_RQ1 = positions_RQ1.astype("int32")
    is_late_enough = ops.less_equal(group.first_query[:, None], positions_RQ1)
    is_early_enough = ops.less_equal(positions_RQ1, group.last_query[:, None])
    return ops.logical_and(is_late_enough, is_early_enough)


def _take_blocks(x_BGMTH: Any, table: Array) -> Any:
    """Gathers and concatenates the blocks in each row of a table: (B, G, R, blocks * T, H)."""
    num_groups, num_blocks, size, dim = x_BGMTH.shape[1:]
    if np.array_equal(table, np.arange(num_blocks)[:, None]):
        return x_BGMTH
    blocks = ops.take(x_BGMTH, table.ravel().astype("int32"), axis=2)
    return ops.reshape(blocks, (-1, num_groups, len(table), table.shape[1] * size, dim))


def attend_to_cached_blocks(
    query: Any,
    cache: dict[str, Any],
    start: Any,
    layout: BlockLayout,
    dropout: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns softmax(QKᵀ / sqrt(H)) V over the keys of a cache that a causal layout shows (BLNH).

    Queries (BLNH) are those of the slots from `start` on, one slot for all sequences or one each.
    The cache has `"key"` and `"value"` (BSGH) and `"mask"` (BS), with the new tokens in them. The H
    of values may differ; the result has this H. The layout covers S positions.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups = cache["key"].shape[2]
    # A single token is a row by itself. More tokens stand in the rows of their blocks. The first
    # and the last row may be partly filled with copies, whose outputs are dropped.
    size = 1 if length == 1 else layout.block_size
    num_rows = (length + size - 2) // size + 1  # The most blocks that the tokens can touch.
    start_B1 = by_row(start)
    offset_B1 = start_B1 % size  # Copies in front of the first token in the first row.
    indices = ops.arange(num_rows * size, dtype="int32") - offset_B1
    query_BGRQH = split_rows(
        take_rows(query * dim**-0.5, ops.clip(indices, 0, length - 1)), num_rows, num_groups
    )
    positions_BRQ1 = ops.reshape(start_B1 + indices, (-1, num_rows, size, 1))
    rows_BR = start_B1 // layout.block_size + ops.arange(num_rows, dtype="int32")
    slots_BRK, first_BRK, last_BRK = _look_up(layout, cache["mask"].shape[1], rows_BR)

    is_visible_BRQK = ops.logical_and(
        first_BRK[:, :, None] <= positions_BRQ1, positions_BRQ1 <= last_BRK[:, :, None]
    )
    is_real_BRK = take_rows(cache["mask"], slots_BRK)
    is_visible_BRQK = ops.logical_and(is_visible_BRQK, is_real_BRK[:, :, None])
    # Heads of queries that share a head of keys are further queries of a row.
    is_visible_B1RQK = ops.tile(is_visible_BRQK, (1, 1, num_heads // num_groups, 1))[:, None]
    key_BGRKH, value_BGRKH = (
        ops.transpose(take_rows(cache[name], slots_BRK), (0, 3, 1, 2, 4))
        for name in ("key", "value")
    )
    outputs_BGRQH = attend_rows(query_BGRQH, key_BGRKH, value_BGRKH, is_visible_B1RQK, dropout)
    outputs = join_rows(outputs_BGRQH, num_heads)
    return take_rows(outputs, offset_B1 + ops.arange(length, dtype="int32"))


def _look_up(layout: BlockLayout, num_slots: int, numbers: Any) -> list[Any]:
    """Returns the cache slots that rows see, and the first and last query that sees each (BRK).

    `numbers` (BR) are the numbers of the rows in the whole sequence.
    """
    table = plan_rows(layout, num_slots)
    slots = table.keys[..., None] * layout.block_size + np.arange(layout.block_size)
    slots = np.minimum(slots, num_slots - 1).reshape(len(slots), -1).astype("int32")
    numbers = ops.minimum(numbers, len(slots) - 1)  # Rows beyond the end hold only copies.
    tables = (slots, table.first_query, table.last_query)
    return [ops.take(array, numbers, axis=0) for array in tables]
