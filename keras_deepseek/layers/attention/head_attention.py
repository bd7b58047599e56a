"""Attention of separate heads, for `MultiHeadLatentAttention` and `GroupedQueryAttention`.

Shape suffixes: B batch, T queries, S keys, N heads of queries, G heads of keys and values, H size
of a query and key, V size of a value.
"""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.call_context import known_size
from keras_deepseek.layers.double_precision import (
    multiply_matrices,
    multiply_transposed,
    promote_dtypes,
)
from keras_deepseek.layers.masks import HIDDEN


def attend_heads(
    query_BTNH: Any,
    key_BSGH: Any,
    value_BSGV: Any,
    mask_BTS: Any,
    drop: Callable[[Any], Any],
    *,
    is_causal: bool = False,
) -> Any:
    """Returns the attention outputs of each head (BTNV) from scaled queries.

    G divides N, and consecutive heads of queries share keys and values. `mask_BTS` broadcasts to
    (BTS), or is `None`. `drop` is the dropout for attention weights. With `is_causal`, the mask
    hides all keys after key `t` from query `t`; they are then skipped.
    """
    # Each head's numbers must lie together; transposing once serves all blocks.
    query_BNTH, key_BGSH, value_BGSV = (
        ops.transpose(x, (0, 2, 1, 3)) for x in (query_BTNH, key_BSGH, value_BSGV)
    )
    length = known_size(query_BTNH.shape[1])
    block_size = backend.current().compute.query_block_size(query_BTNH)
    if not is_causal or length is None or length < 2 * block_size:
        outputs_BNTV = _attend_block(query_BNTH, key_BGSH, value_BGSV, mask_BTS, drop)
        return ops.transpose(outputs_BNTV, (0, 2, 1, 3))
    # The queries of a block need only the keys up to the last of them.
    blocks = []
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        block = _attend_block(
            query_BNTH[:, :, start:stop],
            key_BGSH[:, :, :stop],
            value_BGSV[:, :, :stop],
            _cut_mask(mask_BTS, start, stop),
            drop,
        )
        blocks.append(block)
    return ops.transpose(ops.concatenate(blocks, axis=2), (0, 2, 1, 3))


def _attend_block(
    query_BNTH: Any, key_BGSH: Any, value_BGSV: Any, mask_BTS: Any, drop: Callable[[Any], Any]
) -> Any:
    """Returns the attention outputs (BNTV) of a block of queries."""
    num_heads, groups = query_BNTH.shape[1], key_BGSH.shape[1]
    if num_heads == groups:
        weights_BNTS = drop(mask_softmax(multiply_transposed(query_BNTH, key_BGSH), mask_BTS))
        return multiply_matrices(weights_BNTS, value_BGSV)
    # The queries of all heads that share keys are rows of one matrix, so no key is repeated.
    batch_size, _, length, dim = ops.shape(query_BNTH)
    rows = (batch_size, groups, num_heads // groups * length)
    key_length, value_dim = ops.shape(value_BGSV)[2:]
    scores = multiply_transposed(ops.reshape(query_BNTH, (*rows, dim)), key_BGSH)
    scores_BNTS = ops.reshape(scores, (batch_size, num_heads, length, key_length))
    weights_BNTS = drop(mask_softmax(scores_BNTS, mask_BTS))
    outputs = multiply_matrices(ops.reshape(weights_BNTS, (*rows, key_length)), value_BGSV)
    return ops.reshape(outputs, (batch_size, num_heads, length, value_dim))


def _cut_mask(mask_BTS: Any, start: int, stop: int) -> Any:
    """Slices an attention mask to queries `start` to `stop` and the keys before `stop`."""
    if mask_BTS is None:
        return None
    if mask_BTS.shape[1] != 1:
        mask_BTS = mask_BTS[:, start:stop]
    return mask_BTS if mask_BTS.shape[2] == 1 else mask_BTS[:, :, :stop]


def mask_softmax(scores_BNTS: Any, mask_BTS: Any) -> Any:
    """Returns the attention weights (BNTS) in the dtype of the scores, computed in float32."""
    dtype = scores_BNTS.dtype
    scores_BNTS = ops.cast(scores_BNTS, promote_dtypes(dtype, "float32"))
    if mask_BTS is not None:
        scores_BNTS = ops.where(ops.expand_dims(mask_BTS, 1), scores_BNTS, HIDDEN)
    if scores_BNTS.shape[-1] == 1:  # The only key has all the weight; Keras's softmax would warn.
        return ops.cast(ops.exp(scores_BNTS - scores_BNTS), dtype)
    return ops.cast(ops.softmax(scores_BNTS, axis=-1), dtype)
