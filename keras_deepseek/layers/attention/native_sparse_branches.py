"""The branches of `NativeSparseAttention`: over compressed blocks, over chosen ones, over a window.

Queries are the tokens of a call, keys what stands in the sequence or in the cache so far, by the
numbers of the tokens without padding. Scores and softmax are in float32.

Legend: B batch, L queries, H heads, G heads of keys and values, R heads of queries to each, D size
of a head, P places for keys, N compressed blocks, M blocks to choose from, n blocks that are
chosen, T tokens in such a block, C chunks of c queries.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
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

GATHERED_KEYS = 2**17
"""How many keys are gathered at a time, so that memory does not grow with the length."""

_ALWAYS = 1e9
"""More than any sum of attention weights."""


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
    rows = _group_heads(query, key.shape[1])
    scores = ops.einsum("bglrd,bgnd->bglrn", rows, key)
    ends = np.arange(key.shape[2], dtype="int32") * stride + (block_size - 1)
    is_shown = ops.less_equal(ends, numbers[:, None, :, None, None])
    weights = weigh_keys(scores, is_shown)
    weights = weights * ops.cast(is_shown, weights.dtype)
    heads = ops.einsum("bglrn,bgnd->blgrd", ops.cast(weights, value.dtype), value)
    heads = ops.reshape(heads, (-1, query.shape[1], query.shape[2], value.shape[-1]))
    return heads, ops.sum(weights, axis=3)


def share_blocks(
    num_compressed: int, compression_block_size: int, stride: int, num_blocks: int, block_size: int
) -> Array:
    """Returns how many strides each compressed block shares with each block to choose from.

    What the paper's sum over both kinds of block comes to.

    Args:
        num_compressed: integer. N.
        compression_block_size: integer. Tokens in a compressed block.
        stride: integer. Tokens in a stride; both sizes are multiples of it.
        num_blocks: integer. M.
        block_size: integer. T.

    Returns:
        An array of shape `(N, M)`.
    """
    first = np.arange(num_compressed)[:, None] * stride
    other = np.arange(num_blocks) * block_size
    begins = np.maximum(first, other)
    ends = np.minimum(first + compression_block_size, other + block_size)
    return np.maximum(ends - begins, 0).astype("float32") / stride


def choose_blocks(
    importance: Any, numbers: Any, block_size: int, num_chosen: int, num_first: int, num_local: int
) -> Any:
    """Returns the most important blocks up to the own one, the first and the last among them.

    Where there are fewer than that, the rest are later ones, which a query does not see.

    Args:
        importance: Tensor of shape `(B, G, L, M)`, of nothing negative.
        numbers: Integer tensor of shape `(B, L)` or `(1, L)`. Those of the queries.
        block_size: integer. T.
        num_chosen: integer. n.
        num_first: integer. How many of the first blocks are always chosen.
        num_local: integer. How many of the last, the own one among them.

    Returns:
        An integer tensor of shape `(B, G, L, n)`.
    """
    num_blocks = importance.shape[-1]
    blocks = np.arange(num_blocks, dtype="int32")
    own = ops.floor_divide(numbers, block_size)[:, None, :, None]
    is_fixed = ops.logical_or(blocks < num_first, ops.greater(blocks, own - num_local))
    scores = ops.where(is_fixed, ops.cast(_ALWAYS, importance.dtype), importance)
    scores = ops.where(ops.less_equal(blocks, own), scores, ops.cast(-1.0, importance.dtype))
    _, chosen = ops.top_k(ops.stop_gradient(scores), min(num_chosen, num_blocks))
    return ops.cast(chosen, "int32")


def attend_to_chosen(query: Any, key: Any, value: Any, chosen: Any, numbers: Any) -> Any:
    """Returns the attention of each query to the blocks that it has chosen, which are gathered.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        key: Tensor of shape `(B, G, M, T, D)`.
        value: Tensor of shape `(B, G, M, T, D)`, with a D of its own.
        chosen: Integer tensor of shape `(B, G, L, n)`.
        numbers: Integer tensor of shape `(B, L)` or `(1, L)`. Those of the queries.

    Returns:
        A tensor of shape `(B, L, H, D)`, with the D of `value`.
    """
    length, num_heads = query.shape[1:3]
    num_groups, num_blocks, block_size = key.shape[1:4]
    rows = _group_heads(query, num_groups)
    tables = [ops.reshape(x, (-1, block_size * x.shape[-1])) for x in (key, value)]
    offsets = ops.arange(ops.shape(key)[0] * num_groups, dtype="int32") * num_blocks
    places = chosen + ops.reshape(offsets, (-1, num_groups, 1, 1))
    reach = numbers[:, None, :, None] - chosen * block_size  # The last token in it that is seen.

    def attend(rows: Any, places: Any, reach: Any, *tables: Any) -> Any:
        size = (-1, num_groups, rows.shape[2], places.shape[3] * block_size)
        keys, values = (
            ops.reshape(
                ops.take(table, ops.reshape(places, (-1,)), axis=0),
                (*size, table.shape[-1] // block_size),
            )
            for table in tables
        )
        is_shown = ops.less_equal(np.arange(block_size, dtype="int32"), ops.expand_dims(reach, -1))
        is_shown = ops.expand_dims(ops.reshape(is_shown, size), 3)
        return attend_rows(rows, keys, values, is_shown, None)

    gathered = (key.shape[0] or 1) * num_groups * chosen.shape[-1] * block_size
    num_chunks = -(-length // max(1, min(length, GATHERED_KEYS // gathered)))
    if num_chunks == 1:
        heads = attend(rows, places, reach, *tables)
    else:
        heads = _map_queries(attend, (rows, places, reach), tables, num_chunks)
    heads = ops.transpose(heads, (0, 2, 1, 3, 4))
    return ops.reshape(heads, (-1, length, num_heads, heads.shape[-1]))


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


def _group_heads(query: Any, num_groups: int) -> Any:
    """From (B, L, H, D) to (B, G, L, R, D), scaled."""
    length, num_heads, dim = query.shape[1:]
    rows = ops.reshape(query * dim**-0.5, (-1, length, num_groups, num_heads // num_groups, dim))
    return ops.transpose(rows, (0, 2, 1, 3, 4))


def _map_queries(function: Any, by_query: tuple[Any, ...], shared: Any, num_chunks: int) -> Any:
    """Returns a function of tensors (B, G, L, ...) chunk by chunk, forward and backward.

    The backward pass computes each chunk anew, so that what was gathered is not kept.
    """
    length = by_query[0].shape[2]
    size = -(-length // num_chunks)

    def split(x: Any) -> Any:
        rest = x.shape[3:]
        padding = ((0, 0), (0, 0), (0, num_chunks * size - length), *[(0, 0)] * len(rest))
        x = ops.reshape(ops.pad(x, padding), (-1, x.shape[1], num_chunks, size, *rest))
        return ops.moveaxis(x, 2, 0)

    def compute(chunk: tuple[Any, ...]) -> Any:
        # Integers are closed over: TensorFlow warns where they are to be differentiated by.
        return keras.remat(lambda rows, *rest: function(rows, *chunk[1:], *rest))(chunk[0], *shared)

    results = ops.map(compute, tuple(split(x) for x in by_query))
    results = ops.moveaxis(results, 0, 2)  # (B, G, C, c, R, D)
    sizes = (-1, results.shape[1], num_chunks * size, *results.shape[4:])
    return ops.reshape(results, sizes)[:, :, :length]
