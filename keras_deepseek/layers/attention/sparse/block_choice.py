"""Attention of each query to its chosen blocks of keys, with queries grouped by block.

Gathering the keys of its blocks for each query would move far more numbers than are multiplied. So
the queries are gathered: queries that chose the same block stand together in tiles, like tokens
that go to the same expert, and each tile is multiplied with its block once. For each query and
block this gives the sum of values, the sum of weights and the score that both are relative to. From
these parts of all its blocks comes one softmax over all of them.

Shape suffixes: B batch, L queries, N heads, G heads of keys and values, R heads of queries to each
of these, H size of a head, M blocks to choose from, K chosen blocks, T tokens in a block, Q queries
of all sequences and groups in a row, S places for queries in tiles, C places in a tile.
"""

from functools import partial
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend import current
from keras_deepseek.layers.double_precision import multiply_matrices, promote_dtypes
from keras_deepseek.layers.masks import HIDDEN
from keras_deepseek.layers.moe.expert_dispatch import ExpertDispatch, dispatch_to_blocks
from keras_deepseek.layers.opaque_operation import call_opaque

_ALWAYS = 1e9
"""The importance of a block that is always chosen: more than any sum of attention weights."""

_LARGEST_TILE = 128


def share_blocks(
    num_compressed: int, compression_block_size: int, stride: int, num_blocks: int, block_size: int
) -> Array:
    """Counts the strides that each compressed block shares with each selectable block.

    The array is `(num_compressed, num_blocks)`. It replaces the paper's sum over both kinds of
    block. All sizes are in tokens; both block sizes are multiples of the stride.
    """
    first = np.arange(num_compressed)[:, None] * stride
    other = np.arange(num_blocks) * block_size
    begins = np.maximum(first, other)
    ends = np.minimum(first + compression_block_size, other + block_size)
    shares: Array = np.maximum(ends - begins, 0).astype("float32") / stride
    return shares


def choose_blocks(
    importance_BGLM: Any,
    numbers_BL: Any,
    block_size: int,
    num_chosen: int,
    num_first: int,
    num_local: int,
) -> Any:
    """Chooses the K most important blocks for each query, up to the query's own block (BGLK).

    The first `num_first` and the last `num_local` blocks, the query's own included, are always
    among them. If there are fewer blocks than K, the rest are later blocks, which a query must not
    see. Importance is not negative. `numbers_BL` are the token numbers of the queries; its batch
    may be 1.
    """
    num_blocks = importance_BGLM.shape[-1]
    dtype = importance_BGLM.dtype
    blocks_M = np.arange(num_blocks, dtype="int32")
    own_B1L1 = ops.floor_divide(numbers_BL, block_size)[:, None, :, None]
    is_fixed = ops.logical_or(blocks_M < num_first, ops.greater(blocks_M, own_B1L1 - num_local))
    scores_BGLM = ops.where(is_fixed, ops.cast(_ALWAYS, dtype), importance_BGLM)
    is_later = ops.greater(blocks_M, own_B1L1)
    scores_BGLM = ops.where(is_later, ops.cast(-1.0, dtype), scores_BGLM)
    top_k = partial(current().compute.top_k, k=min(num_chosen, num_blocks))
    _, chosen_BGLK = call_opaque(top_k, ops.stop_gradient(scores_BGLM))
    return ops.cast(chosen_BGLK, "int32")


def attend_to_chosen(
    query_BGLRH: Any, key_BGMTH: Any, value_BGMTH: Any, chosen_BGLK: Any, numbers_BL: Any
) -> Any:
    """Computes causal attention of queries to the keys of their chosen blocks (BGLRH).

    It works like a mixture of experts: a block of keys is an expert, and a query is a token that is
    routed to its chosen blocks. Queries are sorted by block and multiplied with that block only, in
    tiles of equal size. Then each query's results of several blocks are merged.

    Queries are scaled. The H of values may differ; the result has this H. `chosen_BGLK` are
    different blocks, the query's own among them. `numbers_BL` are the token numbers of the queries;
    its batch may be 1.
    """
    num_groups, length, ratio, dim = query_BGLRH.shape[1:]
    num_blocks, block_size = key_BGMTH.shape[2:4]
    num_chosen, value_dim = chosen_BGLK.shape[-1], value_BGMTH.shape[-1]
    # Blocks are numbered across all sequences and heads of keys, which are dispatched at once.
    num_key_heads = ops.shape(query_BGLRH)[0] * num_groups
    key_heads_BG11 = ops.reshape(ops.arange(num_key_heads, dtype="int32"), (-1, num_groups, 1, 1))
    no_block = num_key_heads * num_blocks
    numbers_B1L1 = ops.reshape(ops.cast(numbers_BL, "int32"), (-1, 1, length, 1))
    # A query near the beginning also "chose" later blocks. These choices count for no block.
    blocks_BGLK = ops.where(
        ops.less_equal(chosen_BGLK * block_size, numbers_B1L1),
        chosen_BGLK + key_heads_BG11 * num_blocks,
        no_block,
    )
    plan = dispatch_to_blocks(
        ops.reshape(blocks_BGLK, (-1, num_chosen)),
        num_key_heads * num_blocks,
        _choose_tile(length * num_chosen, num_blocks),
    )
    numbers_Q = ops.reshape(numbers_B1L1 + ops.zeros_like(key_heads_BG11), (-1,))
    # For each tile, the number of the first token of its block of keys.
    first_token = ops.expand_dims(plan.expert_of_block % num_blocks * block_size, 1)
    numbers_S = ops.take(numbers_Q, plan.token_of_slot, axis=0)
    parts = _attend_tiles(
        ops.reshape(query_BGLRH, (-1, ratio * dim)),
        ops.reshape(key_BGMTH, (-1, block_size * dim)),
        ops.reshape(value_BGMTH, (-1, block_size * value_dim)),
        plan,
        ops.reshape(numbers_S, (-1, plan.block_size)) - first_token,
        ratio,
    )
    heads_QRH = ops.cast(_join_parts(*parts, plan), value_BGMTH.dtype)
    return ops.reshape(heads_QRH, (-1, num_groups, length, ratio, value_dim))


def _choose_tile(num_choices: int, num_blocks: int) -> int:
    """Returns how many queries of one block are multiplied together, so that little is padding.

    A single new token gets a tile for each of its blocks.
    """
    load = num_choices // (4 * num_blocks)
    return min(_LARGEST_TILE, 1 << max(0, load.bit_length() - 1))


def _attend_tiles(
    queries: Any, keys: Any, values: Any, plan: ExpertDispatch, last_visible: Any, ratio: int
) -> tuple[Any, Any, Any]:
    """Computes each query's partial softmax over one block of keys, in float32.

    Queries are `(Q, R * H)`; keys and values `(B * G * M, T * H)`, where the H of values may
    differ. `plan` puts the queries in tiles, each with its block. `last_visible`, `(S / C, C)`, is
    the last token of the block that each query sees. Returns sums of values (SRH), sums of weights
    (SR), and the highest scores (SR), which both sums are relative to.
    """
    size, dim = plan.block_size, queries.shape[-1] // ratio
    block_size = keys.shape[-1] // dim
    # For each tile: its queries with all their heads, and its one block of keys and values.
    rows = ops.reshape(ops.take(queries, plan.token_of_slot, axis=0), (-1, size * ratio, dim))
    key, value = (
        ops.reshape(
            ops.take(x, plan.expert_of_block, axis=0), (-1, block_size, x.shape[-1] // block_size)
        )
        for x in (keys, values)
    )
    scores = multiply_matrices(rows, ops.transpose(key, (0, 2, 1)))
    dtype = promote_dtypes(scores.dtype, "float32")
    scores = ops.reshape(ops.cast(scores, dtype), (-1, size, ratio, block_size))
    is_visible = ops.less_equal(
        np.arange(block_size, dtype="int32"), ops.reshape(last_visible, (-1, size, 1, 1))
    )
    scores = ops.where(is_visible, scores, ops.cast(HIDDEN, dtype))
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


def _join_parts(sums_SRH: Any, total_SR: Any, highest_SR: Any, plan: ExpertDispatch) -> Any:
    """Merges each query's partial softmax results of several blocks into its output (QRH)."""
    ratio, dim = sums_SRH.shape[1:]
    num_chosen = plan.slot_of_choice.shape[1]
    slots = ops.reshape(plan.slot_of_choice, (-1,))
    total_QKR, highest_QKR = (
        ops.reshape(ops.take(x, slots, axis=0), (-1, num_chosen, ratio))
        for x in (total_SR, highest_SR)
    )
    is_computed_QK1 = ops.expand_dims(plan.is_computed, -1)
    highest_QKR = ops.where(is_computed_QK1, highest_QKR, ops.cast(HIDDEN, highest_QKR.dtype))
    share_QKR = ops.exp(highest_QKR - ops.max(highest_QKR, axis=1, keepdims=True))
    share_QKR = share_QKR / ops.sum(share_QKR * total_QKR, axis=1, keepdims=True)
    flat_sums = ops.take(ops.reshape(sums_SRH, (-1, ratio * dim)), slots, axis=0)
    sums_QKRH = ops.reshape(flat_sums, (-1, num_chosen, ratio, dim))
    return ops.einsum("qkr,qkrh->qrh", share_QKR, sums_QKRH)
