"""Attention with sinks to a sliding window of tokens and to far entries.

The window is computed in blocks: consecutive queries are multiplied with the keys that any of them
sees. All heads share one head of keys, which are the values too.

Shape suffixes: B batch, T tokens of a call, R recent tokens before them, N heads, H size of a head,
M blocks, Q queries in a block, K keys of a block or a query, E far entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.backend.call_context import known_size
from keras_deepseek.layers.attention.compressed.token_packing import take_rows
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.masks import HIDDEN

_BLOCK_SIZES = (16, 128)
"""The fewest and the most queries in a block. Within these limits it is the window's size."""

_MOST_GATHERED = 2**24
"""The most numbers of chosen entries of a sequence to gather at once, unless `_MOST_PARTS`
binds."""

_MOST_PARTS = 16
"""The most parts in which the blocks are computed. Each part is compiled by itself."""


@dataclass(frozen=True, eq=False)
class NearKeys:
    """The keys (B, R + T, H) of the tokens that a sliding window covers.

    Args:
        num_before: Integer tensor of shape `(B, 1)` or `(1, 1)`. The number of real tokens among
            the R recent ones; they are the last of these.
        sliding_window: The number of tokens that a query sees, its own token included.
    """

    keys: Any
    num_before: Any
    sliding_window: int


@dataclass(frozen=True, eq=False)
class FarKeys:
    """The keys (BEH) of far entries. A query sees some of the first entries.

    Args:
        num_visible: Integer tensor of shape `(B, T)` or `(1, T)`. How many first entries a query
            may see.
        chosen: Integer tensor (BTK), the numbers of the entries that a query has chosen. It sees
            those of them that it may see; `None` for all.
    """

    keys: Any
    num_visible: Any
    chosen: Any = None


def sink_attention(
    query_BTNH: Any, near: NearKeys, far: FarKeys | None, sinks_N: Any, drop: Callable[[Any], Any]
) -> Any:
    """Computes attention (BTNH) by one softmax over near keys, far keys and the sink of each head.

    Keys are the values too. A sink is a score without a key: it only takes weight away from the
    keys. Queries are scaled. A query that sees no key gets zeros. `drop` is the dropout for
    attention weights.
    """
    batch_size, length, num_heads, dim = ops.shape(query_BTNH)
    fewest, most = _BLOCK_SIZES
    size = min(max(near.sliding_window, fewest), most)
    size = min(size, known_size(query_BTNH.shape[1]) or most)
    num_blocks = (length + size - 1) // size
    query_BMQNH = _to_blocks(query_BTNH, num_blocks, size)
    near_BMKH, is_near_BMQK = _find_near(near, length, num_blocks, size)
    chosen_BMQK = num_visible_BMQ1 = None
    if far is not None:
        num_visible_BMQ1 = _to_blocks(far.num_visible[..., None], num_blocks, size)
        chosen_BMQK = None if far.chosen is None else _to_blocks(far.chosen, num_blocks, size)

    outputs = []
    for part in _split_blocks(num_blocks, chosen_BMQK, dim):
        # For near and far keys: the einsum indices, the keys, and which keys a query sees.
        kinds = [("bmkh", near_BMKH[:, part], is_near_BMQK[:, part])]
        if far is not None and num_visible_BMQ1 is not None:
            counts_BMQ1 = num_visible_BMQ1[:, part]
            if chosen_BMQK is None:
                numbers_E = ops.arange(ops.shape(far.keys)[1], dtype="int32")
                kinds.append(("bkh", far.keys, numbers_E < counts_BMQ1))
            else:
                numbers_BMQK = chosen_BMQK[:, part]
                far_BMQKH = take_rows(far.keys, numbers_BMQK)
                kinds.append(("bmqkh", far_BMQKH, numbers_BMQK < counts_BMQ1))
        outputs.append(_attend(query_BMQNH[:, part], kinds, sinks_N, drop))
    joined_BMQNH = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)
    return ops.reshape(joined_BMQNH, (batch_size, num_blocks * size, num_heads, dim))[:, :length]


def _split_blocks(num_blocks: Any, chosen_BMQK: Any, dim: int) -> list[slice]:
    """Returns slices that split blocks of queries into groups, so that their keys fit in memory."""
    if chosen_BMQK is None or known_size(num_blocks) is None:
        return [slice(None)]
    size, num_chosen = chosen_BMQK.shape[2:]
    fitting = max(1, _MOST_GATHERED // (size * num_chosen * dim))
    width = max(fitting, -(-num_blocks // _MOST_PARTS))
    return [slice(start, start + width) for start in range(0, num_blocks, width)]


def _attend(
    query_BMQNH: Any,
    kinds: Sequence[tuple[str, Any, Any]],
    sinks_N: Any,
    drop: Callable[[Any], Any],
) -> Any:
    """Computes attention (BMQNH) by one softmax over near keys, far keys and sinks.

    `kinds` has for near and far keys: their einsum indices, the keys, and a mask (BMQK).
    """
    scores = [
        ops.einsum(f"bmqnh,{indices}->bmqnk", query_BMQNH, keys) for indices, keys, _ in kinds
    ]
    weights = _weigh(scores, [is_visible for *_, is_visible in kinds], sinks_N)
    return sum(
        ops.einsum(f"bmqnk,{indices}->bmqnh", drop(ops.cast(weight_BMQNK, keys.dtype)), keys)
        for weight_BMQNK, (indices, keys, _) in zip(weights, kinds, strict=True)
    )


def _to_blocks(x: Any, num_blocks: Any, size: int) -> Any:
    """Splits (B, T, ...) into blocks (B, M, Q, ...), padded with copies of the last query."""
    batch_size, length, *row = ops.shape(x)
    if known_size(length) is None or length != num_blocks * size:
        x = ops.take(
            x, ops.minimum(ops.arange(num_blocks * size, dtype="int32"), length - 1), axis=1
        )
    return ops.reshape(x, (batch_size, num_blocks, size, *row))


def _find_near(near: NearKeys, length: Any, num_blocks: Any, size: int) -> tuple[Any, Any]:
    """Returns each block's window of keys (BMKH), and which of them a query sees (BMQK)."""
    window, num_tokens = near.sliding_window, ops.shape(near.keys)[1]
    num_keys = window - 1 + size
    # Counted from the first token of the call, so recent tokens have negative numbers.
    first_M1 = ops.arange(num_blocks, dtype="int32")[:, None] * size - (window - 1)
    numbers_MK = first_M1 + ops.arange(num_keys, dtype="int32")
    rows_MK = ops.clip(numbers_MK + (num_tokens - length), 0, num_tokens - 1)
    distance_QK = np.arange(size)[:, None] - np.arange(num_keys) + window - 1
    is_near_QK = (distance_QK >= 0) & (distance_QK < window)
    num_recent_B1 = ops.minimum(near.num_before, num_tokens - length)
    is_token_BMK = numbers_MK >= -num_recent_B1[..., None]
    is_visible_BMQK = ops.logical_and(is_near_QK, is_token_BMK[:, :, None])
    return ops.take(near.keys, rows_MK, axis=1), is_visible_BMQK


def _weigh(scores: Sequence[Any], is_visible: Sequence[Any], sinks_N: Any) -> list[Any]:
    """Returns attention weights for each kind of keys, by one softmax over all kinds and sinks.

    Scores are (BMQNK), masks (BMQK), and weights (BMQNK) in float32 or better.
    """
    dtype = promote_dtypes(scores[0].dtype, "float32")
    scores = [
        ops.where(visible_BMQK[..., None, :], ops.cast(score_BMQNK, dtype), HIDDEN)
        for score_BMQNK, visible_BMQK in zip(scores, is_visible, strict=True)
    ]
    sinks_N1 = ops.cast(sinks_N, dtype)[:, None]
    highest = ops.stop_gradient(sinks_N1)
    for score_BMQNK in scores:
        # Without `initial`, Keras refuses the maximum of an empty batch.
        most = ops.max(ops.stop_gradient(score_BMQNK), axis=-1, keepdims=True, initial=HIDDEN)
        highest = ops.maximum(highest, most)
    exponents = [ops.exp(score_BMQNK - highest) for score_BMQNK in scores]
    total_BMQN1 = ops.exp(-(highest - sinks_N1))  # JAX's arrays subtract no `keras.KerasTensor`.
    for exponent in exponents:
        total_BMQN1 = total_BMQN1 + ops.sum(exponent, axis=-1, keepdims=True)
    return [exponent / total_BMQN1 for exponent in exponents]
