"""Two branches of `NativeSparseAttention`: over compressed blocks, and over a window of a cache.

The third, over chosen blocks, is in `block_choice`.

Queries are the tokens of a call, keys what stands in the sequence or in the cache so far, by the
numbers of the tokens without padding. Scores and softmax are in float32.

Legend: B batch, L queries, H heads, G heads of keys and values, R heads of queries to each, D size
of a head, P places for keys, N compressed blocks.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.layers.attention.block_layout import BlockLayout
from keras_deepseek.layers.attention.block_plan import plan_blocks
from keras_deepseek.layers.attention.block_sparse_attention import (
    attend_rows,
    block_sparse_attention,
    join_rows,
    split_rows,
    weigh_keys,
)
from keras_deepseek.layers.attention.token_places import take_places


def attend_to_compressed(
    query: Any, key: Any, value: Any, numbers: Any, block_size: int, stride: int
) -> tuple[Any, Any]:
    """Returns the attention to blocks that have ended, and how much went to each.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        key: Tensor of shape `(B, G, N, D)`.
        value: Tensor of shape `(B, G, N, D)`, with a D of its own.
        numbers: Integer tensor of shape `(B, L)` or `(1, L)`. Those of the queries.
        block_size: integer. Tokens in a block.
        stride: integer. Tokens from the first of a block to that of the next.

    Returns:
        The outputs, of shape `(B, L, H, D)`, zeros where no block has ended, and the weights summed
        over the queries' heads that share a head of keys, of shape `(B, G, L, N)`.
    """
    rows = group_heads(query, key.shape[1])
    scores = ops.einsum("bglrd,bgnd->bglrn", rows, key)
    ends = np.arange(key.shape[2], dtype="int32") * stride + (block_size - 1)
    is_shown = ops.less_equal(ends, numbers[:, None, :, None, None])
    weights = weigh_keys(scores, is_shown)
    weights = weights * ops.cast(is_shown, weights.dtype)
    heads = ops.einsum("bglrn,bgnd->blgrd", ops.cast(weights, value.dtype), value)
    heads = ops.reshape(heads, (-1, query.shape[1], query.shape[2], value.shape[-1]))
    return heads, ops.sum(weights, axis=3)


def attend_to_window(query: Any, key: Any, value: Any, numbers: Any, layout: BlockLayout) -> Any:
    """Returns the attention to the last tokens that a cache holds.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        key: Tensor of shape `(B, G, P, D)`, with the keys of the queries in it.
        value: Tensor of shape `(B, G, P, D)`, with a D of its own.
        numbers: Integer tensor of shape `(B, L)`. Those of the queries, in a row.
        layout: `BlockLayout` with a causal `sliding_window`, and nothing else.

    Returns:
        A tensor of shape `(B, L, H, D)`, with the D of `value`.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups, window = key.shape[1], layout.sliding_window or 1
    places = numbers[:, :1] + np.arange(1 - window, length, dtype="int32")
    key, value = (take_places(x, ops.maximum(places, 0)) for x in (key, value))
    is_real = ops.greater_equal(places, 0)
    if length > window:  # Not each with all: the tokens before stand there as queries too.
        query = ops.pad(query, ((0, 0), (window - 1, 0), (0, 0), (0, 0)))
        key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (key, value))
        plan = plan_blocks(layout, length + window - 1)
        return block_sparse_attention(query, key, value, plan, is_real)[:, window - 1 :]
    distance = np.arange(length)[:, None] - np.arange(1 - window, length)
    is_seen = np.tile((distance >= 0) & (distance < window), (num_heads // num_groups, 1))
    is_shown = ops.logical_and(is_real[:, None, None, None], is_seen)
    rows = split_rows(query * dim**-0.5, 1, num_groups)
    heads = attend_rows(rows, key[:, :, None], value[:, :, None], is_shown, None)
    return join_rows(heads, num_heads)


def group_heads(query: Any, num_groups: int) -> Any:
    """Returns queries by the heads of keys that they share, scaled.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        num_groups: integer. G.

    Returns:
        A tensor of shape `(B, G, L, R, D)`.
    """
    length, num_heads, dim = query.shape[1:]
    rows = ops.reshape(query * dim**-0.5, (-1, length, num_groups, num_heads // num_groups, dim))
    return ops.transpose(rows, (0, 2, 1, 3, 4))
