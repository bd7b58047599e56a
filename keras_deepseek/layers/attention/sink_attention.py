"""Attention with sinks to a sliding window of tokens and to entries that are far away.

The window goes by blocks: queries that follow one another are multiplied with the keys that any of
them sees. All heads share one head of keys, which are the values too.

Legend: B batch, L tokens of a call, R recent tokens before them, H heads, D size of a head, N
blocks, T queries in a block, W tokens in the window, C entries far away, K keys beside a query.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.layers.attention.compressed.token_packing import take_rows
from keras_deepseek.layers.attention.hidden_score import HIDDEN
from keras_deepseek.layers.double_precision import promote_dtypes

_BLOCK_SIZES = (16, 128)
"""The fewest and the most queries in a block: as many as the window has tokens, within these."""

_MOST_GATHERED = 2**24
"""How many numbers of chosen entries of a sequence are gathered at once, if the parts allow it."""

_MOST_PARTS = 16
"""How many parts the blocks are computed in at most: each is compiled on its own."""


@dataclass(frozen=True, eq=False)
class NearKeys:
    """The tokens that a sliding window goes over.

    Args:
        keys: Tensor of shape `(B, R + L, D)`.
        num_before: Integer tensor of shape `(B, 1)` or `(1, 1)`. How many of the tokens before the
            call there are; of R, the last ones.
        sliding_window: integer. W: a query sees its own token and so many less one before it.
    """

    keys: Any
    num_before: Any
    sliding_window: int


@dataclass(frozen=True, eq=False)
class FarKeys:
    """Entries, of which a query sees the first few, or chosen ones of these.

    Args:
        keys: Tensor of shape `(B, C, D)`.
        num_visible: Integer tensor of shape `(B, L)` or `(1, L)`.
        chosen: Integer tensor of shape `(B, L, K)`, or `None` for all.
    """

    keys: Any
    num_visible: Any
    chosen: Any = None


def sink_attention(
    queries: Any, near: NearKeys, far: FarKeys | None, sinks: Any, drop: Callable[[Any], Any]
) -> Any:
    """Returns softmax(Q Kᵀ, with a sink a head beside it) K over all that a query sees.

    Args:
        queries: Tensor of shape `(B, L, H, D)`, scaled.
        near: `NearKeys`.
        far: `FarKeys` or `None`.
        sinks: Tensor of shape `(H,)`. The score of what is not there, and takes weight away.
        drop: What drops some of the attention weights.

    Returns:
        A tensor of shape `(B, L, H, D)`; zeros where a query sees nothing.
    """
    batch_size, length, num_heads, dim = ops.shape(queries)
    fewest, most = _BLOCK_SIZES
    size = min(max(near.sliding_window, fewest), most, queries.shape[1] or most)
    num_blocks = (length + size - 1) // size
    queries = _to_blocks(queries, num_blocks, size)
    near_keys, is_near = _find_near(near, length, num_blocks, size)
    chosen = num_visible = None
    if far is not None:
        num_visible = _to_blocks(far.num_visible[..., None], num_blocks, size)
        chosen = None if far.chosen is None else _to_blocks(far.chosen, num_blocks, size)

    outputs = []
    for part in _split_blocks(num_blocks, chosen, dim):
        # For each kind of keys: its equation, the keys and which of them a query sees.
        kinds = [("bnkd", near_keys[:, part], is_near[:, part])]
        if far is not None and num_visible is not None:
            counts = num_visible[:, part]
            if chosen is None:
                numbers = ops.arange(ops.shape(far.keys)[1], dtype="int32")
                kinds.append(("bkd", far.keys, numbers < counts))
            else:
                numbers = chosen[:, part]
                kinds.append(("bntkd", take_rows(far.keys, numbers), numbers < counts))
        outputs.append(_attend(queries[:, part], kinds, sinks, drop))
    joined = outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, axis=1)
    return ops.reshape(joined, (batch_size, num_blocks * size, num_heads, dim))[:, :length]


def _split_blocks(num_blocks: Any, chosen: Any, dim: int) -> list[slice]:
    """Returns in which parts to compute: what is gathered at once should not fill the memory."""
    if chosen is None or not isinstance(num_blocks, int):
        return [slice(None)]
    size, num_chosen = chosen.shape[2:]
    fitting = max(1, _MOST_GATHERED // (size * num_chosen * dim))
    width = max(fitting, -(-num_blocks // _MOST_PARTS))
    return [slice(start, start + width) for start in range(0, num_blocks, width)]


def _attend(
    queries: Any,
    kinds: Sequence[tuple[str, Any, Any]],
    sinks: Any,
    drop: Callable[[Any], Any],
) -> Any:
    """Returns the outputs of blocks of queries (B, N, T, H, D) over all kinds of keys."""
    scores = [ops.einsum(f"bnthd,{kind}->bnthk", queries, keys) for kind, keys, _ in kinds]
    weights = _weigh(scores, [is_shown for *_, is_shown in kinds], sinks)
    return sum(
        ops.einsum(f"bnthk,{kind}->bnthd", drop(ops.cast(weight, keys.dtype)), keys)
        for weight, (kind, keys, _) in zip(weights, kinds, strict=True)
    )


def _to_blocks(x: Any, num_blocks: Any, size: int) -> Any:
    """From (B, L, ...) to (B, N, T, ...), the end filled up with the last query."""
    batch_size, length, *row = ops.shape(x)
    if not isinstance(length, int) or length != num_blocks * size:
        x = ops.take(
            x, ops.minimum(ops.arange(num_blocks * size, dtype="int32"), length - 1), axis=1
        )
    return ops.reshape(x, (batch_size, num_blocks, size, *row))


def _find_near(near: NearKeys, length: Any, num_blocks: Any, size: int) -> tuple[Any, Any]:
    """Returns the keys beside each block (B, N, K, D), and what is seen of them (B, N, T, K)."""
    window, num_tokens = near.sliding_window, ops.shape(near.keys)[1]
    num_keys = window - 1 + size
    # Counted from the first token of the call; the recent ones have negative numbers.
    firsts = ops.arange(num_blocks, dtype="int32")[:, None] * size - (window - 1)
    numbers = firsts + ops.arange(num_keys, dtype="int32")
    rows = ops.clip(numbers + (num_tokens - length), 0, num_tokens - 1)
    distance = np.arange(size)[:, None] - np.arange(num_keys) + window - 1
    is_near = (distance >= 0) & (distance < window)
    num_recent = ops.minimum(near.num_before, num_tokens - length)
    is_token = numbers >= -num_recent[..., None]
    return ops.take(near.keys, rows, axis=1), ops.logical_and(is_near, is_token[:, :, None])


def _weigh(scores: Sequence[Any], is_shown: Sequence[Any], sinks: Any) -> list[Any]:
    """Returns the attention weights, of one softmax in float32 over all kinds and the sinks."""
    dtype = promote_dtypes(scores[0].dtype, "float32")
    scores = [
        ops.where(shown[..., None, :], ops.cast(score, dtype), HIDDEN)
        for score, shown in zip(scores, is_shown, strict=True)
    ]
    sinks = ops.cast(sinks, dtype)[:, None]
    highest = ops.stop_gradient(sinks)
    for score in scores:
        # Keras refuses the maximum of an empty batch without an initial one.
        most = ops.max(ops.stop_gradient(score), axis=-1, keepdims=True, initial=HIDDEN)
        highest = ops.maximum(highest, most)
    exponents = [ops.exp(score - highest) for score in scores]
    total = ops.exp(sinks - highest)
    for exponent in exponents:
        total = total + ops.sum(exponent, axis=-1, keepdims=True)
    return [exponent / total for exponent in exponents]
