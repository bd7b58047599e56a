"""Attention by a block plan: only the blocks that a query sees are multiplied with it.

Between `block_plan`, which says what to compute, and the layers that project queries, keys and
values. The blocks of keys and values are gathered by a table that is known ahead, in one way for
all layouts and backends. Shifted slices in its place gained nothing steady and compiled for longer.

Legend: B batch, S length, H heads, G heads of keys and values, D size of a head, N blocks,
T positions in a block, and, of a group of rows, R rows, Q queries in a row, K keys in a row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.layers.attention.hidden_score import HIDDEN
from keras_deepseek.layers.attention.sparse.block_plan import BlockPlan, RowGroup
from keras_deepseek.layers.double_precision import promote_dtypes


def block_sparse_attention(
    query: Any,
    key: Any,
    value: Any,
    plan: BlockPlan,
    key_mask: Any = None,
    dropout: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns softmax(QKᵀ / sqrt(D)) V over what the plan shows, and zeros where it shows nothing.

    Args:
        query: Tensor of shape `(B, S, H, D)`.
        key: Tensor of shape `(B, S, G, D)`, where G divides H; heads of queries that follow one
            another share a head of keys.
        value: Tensor of shape `(B, S, G, D)`, with a D of its own.
        plan: `BlockPlan` for this S.
        key_mask: Boolean tensor of shape `(B, S)` or `None`. `False` hides a key from all queries.
            Defaults to `None`.
        dropout: Function of the attention weights, or `None`. Defaults to `None`.

    Returns:
        A tensor of shape `(B, S, H, D)`, with the D of `value`.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups = key.shape[2]
    query = _to_blocks(query * dim**-0.5, plan, num_groups)
    key, value = _to_blocks(key, plan, num_groups), _to_blocks(value, plan, num_groups)
    if key_mask is not None:
        key_mask = _to_blocks(ops.cast(key_mask, "bool")[..., None, None], plan, 1)
    outputs = [_attend_group(query, key, value, group, key_mask, dropout) for group in plan.groups]
    output = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, 2)
    output = _take_blocks(output, plan.order[:, None])
    return join_rows(output, num_heads)[:, :length]


def _to_blocks(x: Any, plan: BlockPlan, num_groups: int) -> Any:
    """From (B, S, H, D) to (B, G, N, H/G * T, D), the end filled up with zeros."""
    fill = plan.num_blocks * plan.block_size - x.shape[1]
    if fill:
        x = ops.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0)))
    return split_rows(x, plan.num_blocks, num_groups)


def split_rows(x: Any, num_rows: int, num_groups: int) -> Any:
    """Returns queries, keys or values by rows that stand side by side.

    Args:
        x: Tensor of shape `(B, R * T, H, D)`.
        num_rows: integer. R.
        num_groups: integer. G.

    Returns:
        A tensor of shape `(B, G, R, H/G * T, D)`.
    """
    length, num_heads, dim = x.shape[1:]
    size, ratio = length // num_rows, num_heads // num_groups
    x = ops.reshape(x, (-1, num_rows, size, num_groups, ratio, dim))
    x = ops.transpose(x, (0, 3, 1, 4, 2, 5))
    return ops.reshape(x, (-1, num_groups, num_rows, ratio * size, dim))


def join_rows(x: Any, num_heads: int) -> Any:
    """Returns what `split_rows` splits.

    Args:
        x: Tensor of shape `(B, G, R, H/G * T, D)`.
        num_heads: integer. H.

    Returns:
        A tensor of shape `(B, R * T, H, D)`.
    """
    num_groups, num_rows, num_queries, dim = x.shape[1:]
    ratio = num_heads // num_groups
    size = num_queries // ratio
    x = ops.reshape(x, (-1, num_groups, num_rows, ratio, size, dim))
    x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
    return ops.reshape(x, (-1, num_rows * size, num_heads, dim))


def _attend_group(
    query: Any,
    key: Any,
    value: Any,
    group: RowGroup,
    key_mask: Any,
    dropout: Callable[[Any], Any] | None,
) -> Any:
    """Returns the outputs of one group's blocks of queries, of shape (B, G, R * r, H/G * T, D)."""
    num_groups, _, num_queries = query.shape[1:4]
    query = _take_blocks(query, group.queries)
    key, value = _take_blocks(key, group.keys), _take_blocks(value, group.keys)
    is_shown = _shown(group, num_queries, key.shape[3] // group.keys.shape[1])
    if key_mask is not None:
        key_mask = ops.squeeze(_take_blocks(key_mask, group.keys), -1)
        is_shown = ops.logical_and(is_shown, key_mask[:, :, :, None])
    output = attend_rows(query, key, value, is_shown, dropout)
    return ops.reshape(output, (-1, num_groups, group.queries.size, num_queries, value.shape[-1]))


def attend_rows(
    query: Any, key: Any, value: Any, is_shown: Any, dropout: Callable[[Any], Any] | None
) -> Any:
    """Returns the outputs of rows of queries that have their keys beside them.

    Args:
        query: Tensor of shape `(B, G, R, Q, D)`, scaled.
        key: Tensor of shape `(B, G, R, K, D)`.
        value: Tensor of shape `(B, G, R, K, D)`, with a D of its own.
        is_shown: Boolean tensor that broadcasts to `(B, G, R, Q, K)`.
        dropout: Function of the attention weights, or `None`.

    Returns:
        A tensor of shape `(B, G, R, Q, D)`, with the D of `value`.
    """
    weights = weigh_keys(ops.einsum("bgrqd,bgrkd->bgrqk", query, key), is_shown)
    weights = ops.cast(weights, value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    output = ops.einsum("bgrqk,bgrkd->bgrqd", weights, value)
    # Where all is hidden, the softmax has spread over what must not be seen.
    return ops.where(ops.any(is_shown, -1, keepdims=True), output, ops.zeros_like(output))


def weigh_keys(scores: Any, is_shown: Any) -> Any:
    """Returns a softmax of scores over what is shown, in float32; where nothing is, over all.

    Args:
        scores: Tensor, with the keys on its last axis.
        is_shown: Boolean tensor that broadcasts to its shape.
    """
    scores = ops.cast(scores, promote_dtypes(scores.dtype, "float32"))
    scores = scores + HIDDEN * ops.cast(ops.logical_not(is_shown), scores.dtype)
    # Keras warns of a softmax over a single key.
    return ops.softmax(scores) if scores.shape[-1] > 1 else ops.ones_like(scores)


def _shown(group: RowGroup, num_queries: int, block_size: int) -> Any:
    """Returns which keys each query of a group sees, of shape (R, Q, K)."""
    positions = group.queries[..., None, None] * block_size + np.arange(block_size)
    ratio = num_queries // block_size  # Heads of queries to a head of keys stand side by side.
    positions = np.repeat(positions, ratio, axis=2).reshape(len(group.queries), -1, 1)
    positions = positions.astype("int32")
    shown = ops.less_equal(group.first_query[:, None], positions)
    return ops.logical_and(shown, ops.less_equal(positions, group.last_query[:, None]))


def _take_blocks(x: Any, table: Array) -> Any:
    """From (B, G, N, T, D) to (B, G, R, m * T, D): the m blocks that each row of a table names."""
    num_groups, num_blocks, size, dim = x.shape[1:]
    if np.array_equal(table, np.arange(num_blocks)[:, None]):
        return x
    taken = ops.take(x, table.ravel().astype("int32"), axis=2)
    return ops.reshape(taken, (-1, num_groups, len(table), table.shape[1] * size, dim))
