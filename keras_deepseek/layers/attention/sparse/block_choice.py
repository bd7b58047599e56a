"""Attention of each query to blocks of its own choice, by products of many queries at a time.

To gather the keys of its blocks for each query would move many times more numbers than are
multiplied. So it is the queries that are gathered: those that have chosen the same block stand
together in tiles, as tokens do that go to the same expert, and each tile is multiplied with its
block once. What a query finds in one block is the sum of its values, the sum of its weights and
the score that both are relative to; from these of all its blocks comes one softmax over all.

Legend: B batch, L queries, H heads, G heads of keys and values, R heads of queries to each, D size
of a head, M blocks to choose from, n blocks that are chosen, T tokens in a block, Q queries of all
sequences and groups in a row, S places for queries in tiles, c of them in one tile.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend import current
from keras_deepseek.layers.attention.hidden_score import HIDDEN
from keras_deepseek.layers.double_precision import multiply_matrices, promote_dtypes
from keras_deepseek.layers.moe.expert_dispatch import ExpertDispatch, dispatch_to_blocks

_ALWAYS = 1e9
"""More than any sum of attention weights."""

_LARGEST_TILE = 128


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
    shares: Array = np.maximum(ends - begins, 0).astype("float32") / stride
    return shares


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
    _, chosen = current().compute.top_k(ops.stop_gradient(scores), min(num_chosen, num_blocks))
    return ops.cast(chosen, "int32")


def attend_to_chosen(query: Any, key: Any, value: Any, chosen: Any, numbers: Any) -> Any:
    """Returns the attention of queries to the blocks that they have chosen, up to themselves.

    Args:
        query: Tensor of shape `(B, G, L, R, D)`, scaled.
        key: Tensor of shape `(B, G, M, T, D)`.
        value: Tensor of shape `(B, G, M, T, D)`, with a D of its own.
        chosen: Integer tensor of shape `(B, G, L, n)`. No block twice, and that of the query.
        numbers: Integer tensor of shape `(B, L)` or `(1, L)`. Those of the queries.

    Returns:
        A tensor of shape `(B, G, L, R, D)`, with the D of `value`.
    """
    num_groups, length, ratio, dim = query.shape[1:]
    num_blocks, block_size = key.shape[2:4]
    num_tables = ops.shape(query)[0] * num_groups
    offsets = ops.reshape(ops.arange(num_tables, dtype="int32"), (-1, num_groups, 1, 1))
    numbers = ops.reshape(ops.cast(numbers, "int32"), (-1, 1, length, 1))
    # Later blocks, which a query near the beginning is left with, are nobody's.
    places = ops.where(
        ops.less_equal(chosen * block_size, numbers),
        chosen + offsets * num_blocks,
        num_tables * num_blocks,
    )
    plan = dispatch_to_blocks(
        ops.reshape(places, (-1, chosen.shape[-1])),
        num_tables * num_blocks,
        _choose_tile(length * chosen.shape[-1], num_blocks),
    )
    numbers = ops.reshape(numbers + ops.zeros_like(offsets), (-1,))
    first = ops.expand_dims(plan.expert_of_block % num_blocks * block_size, 1)
    reach = ops.reshape(ops.take(numbers, plan.token_of_slot, axis=0), (-1, plan.block_size))
    parts = _attend_tiles(
        ops.reshape(query, (-1, ratio * dim)),
        ops.reshape(key, (-1, block_size * dim)),
        ops.reshape(value, (-1, block_size * value.shape[-1])),
        plan,
        reach - first,
        ratio,
    )
    heads = ops.cast(_join_parts(*parts, plan), value.dtype)
    return ops.reshape(heads, (-1, num_groups, length, ratio, value.shape[-1]))


def _choose_tile(num_choices: int, num_blocks: int) -> int:
    """Returns how many queries a tile holds: few enough that most tiles are full.

    A single new token has a tile for each of its blocks.
    """
    load = num_choices // (4 * num_blocks)
    return min(_LARGEST_TILE, 1 << max(0, load.bit_length() - 1))


def _attend_tiles(
    query: Any, keys: Any, values: Any, plan: ExpertDispatch, reach: Any, ratio: int
) -> tuple[Any, Any, Any]:
    """Returns what queries find in one block: sums of values, of weights, and the highest scores.

    Args:
        query: Tensor of shape `(Q, R * D)`.
        keys: Tensor of shape `(B * G * M, T * D)`.
        values: Tensor of shape `(B * G * M, T * D)`, with a D of its own.
        plan: `ExpertDispatch`.
        reach: Integer tensor of shape `(S / c, c)`. The last token in the block that is seen.
        ratio: integer. R.

    Returns:
        Tensors of shape `(S, R, D)`, `(S, R)` and `(S, R)`, in float32.
    """
    size, dim = plan.block_size, query.shape[-1] // ratio
    block_size = keys.shape[-1] // dim
    rows = ops.reshape(ops.take(query, plan.token_of_slot, axis=0), (-1, size * ratio, dim))
    key, value = (
        ops.reshape(
            ops.take(x, plan.expert_of_block, axis=0), (-1, block_size, x.shape[-1] // block_size)
        )
        for x in (keys, values)
    )
    scores = multiply_matrices(rows, ops.transpose(key, (0, 2, 1)))
    dtype = promote_dtypes(scores.dtype, "float32")
    scores = ops.reshape(ops.cast(scores, dtype), (-1, size, ratio, block_size))
    is_seen = ops.less_equal(
        np.arange(block_size, dtype="int32"), ops.reshape(reach, (-1, size, 1, 1))
    )
    scores = ops.where(is_seen, scores, ops.cast(HIDDEN, dtype))
    highest = ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True))
    weights = ops.exp(scores - highest)
    total = ops.sum(weights, axis=-1)
    weights = ops.reshape(ops.cast(weights, value.dtype), (-1, size * ratio, block_size))
    sums = ops.cast(multiply_matrices(weights, value), dtype)
    return (
        ops.reshape(sums, (-1, ratio, value.shape[-1])),
        ops.reshape(total, (-1, ratio)),
        ops.reshape(highest, (-1, ratio)),
    )


def _join_parts(sums: Any, total: Any, highest: Any, plan: ExpertDispatch) -> Any:
    """Returns the attention (Q, R, D) of queries from what they found in each of their blocks."""
    ratio, dim = sums.shape[1:]
    num_chosen = plan.slot_of_choice.shape[1]
    slots = ops.reshape(plan.slot_of_choice, (-1,))
    total, highest = (
        ops.reshape(ops.take(x, slots, axis=0), (-1, num_chosen, ratio)) for x in (total, highest)
    )
    is_computed = ops.expand_dims(plan.is_computed, -1)
    highest = ops.where(is_computed, highest, ops.cast(HIDDEN, highest.dtype))
    share = ops.exp(highest - ops.max(highest, axis=1, keepdims=True))
    share = share / ops.sum(share * total, axis=1, keepdims=True)
    sums = ops.reshape(
        ops.take(ops.reshape(sums, (-1, ratio * dim)), slots, axis=0), (-1, num_chosen, ratio, dim)
    )
    return ops.einsum("qnr,qnrd->qrd", share, sums)
