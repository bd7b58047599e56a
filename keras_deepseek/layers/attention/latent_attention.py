"""Attention over compressed keys and values, in the two ways that `MultiHeadLatentAttention` has.

`DeepSeekSparseAttention` has a third: the absorbed way, over keys that each query has chosen.

Letters: b batch, t queries, s keys, h heads, n and r the parts of a head without and with a
position, v a value, c the compressed keys and values. Queries come scaled, as the pair of parts
(bthn, bthr); keys as the pair of the compressed ones and the rotary key that heads share, (bsc,
bsr).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from keras import ops

from keras_deepseek import backend
from keras_deepseek.layers.attention.compressed.hidden_score import HIDDEN
from keras_deepseek.layers.double_precision import (
    multiply_matrices,
    multiply_transposed,
    promote_dtypes,
)


def is_absorbed_cheaper(
    query_length: int | None, key_length: int | None, expanded_dim: int, rank: int
) -> bool:
    """Whether the absorbed way takes fewer multiplications than the naive one.

    Args:
        query_length: integer or `None` where it is not known: then as many as keys.
        key_length: integer or `None`.
        expanded_dim: integer. Size of a head's value and of its key without the rotary part.
        rank: integer. Size of the compressed keys and values.

    Returns:
        A boolean.
    """
    if query_length is None or key_length is None:
        return expanded_dim > 2 * rank  # What the comparison below comes to at equal lengths.
    naive = key_length * expanded_dim * (rank + query_length)
    absorbed = query_length * rank * (expanded_dim + 2 * key_length)
    return absorbed < naive


def attend_naive(
    queries: tuple[Any, Any],
    keys: tuple[Any, Any],
    mask: Any,
    ups: Sequence[Callable[[Any], Any]],
    drop: Callable[[Any], Any],
    *,
    is_causal: bool = False,
) -> Any:
    """Returns the weighted values (bthv), with keys and values expanded for each head.

    Args:
        queries: Pair of tensors.
        keys: Pair of tensors.
        mask: Boolean tensor that broadcasts to (bts), or `None`.
        ups: What expands compressed keys and values to keys (bshn) and to values (bshv).
        drop: What drops some of the attention weights.
        is_causal: Whether the mask hides from query `t` all keys behind key `t`, so that these need
            not be looked at. Defaults to `False`.

    Returns:
        A tensor.
    """
    query, key, value = _expand(queries, keys, ups)
    # Each head's numbers lie together, once for all blocks.
    query, key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value))
    length, block_size = queries[0].shape[1], backend.current().compute.query_block_size(query)
    if not is_causal or length is None or length < 2 * block_size:
        heads = _attend_block(query, key, value, mask, drop)
        return ops.transpose(heads, (0, 2, 1, 3))
    blocks = []
    for start in range(0, length, block_size):
        stop = min(start + block_size, length)
        block = _attend_block(
            query[:, :, start:stop],
            key[:, :, :stop],
            value[:, :, :stop],
            _cut_mask(mask, start, stop),
            drop,
        )
        blocks.append(block)
    return ops.transpose(ops.concatenate(blocks, axis=2), (0, 2, 1, 3))


def attend_fused(
    queries: tuple[Any, Any],
    keys: tuple[Any, Any],
    mask: Any,
    ups: Sequence[Callable[[Any], Any]],
) -> Any:
    """Returns what `attend_naive` does, by the one operation that a framework has for attention.

    It takes keys and values of one size, so that values are given zeros.

    Args:
        queries: Pair of tensors, as many as keys.
        keys: Pair of tensors.
        mask: Boolean tensor that broadcasts to (bts), or `None` for a causal one.
        ups: As for `attend_naive`.

    Returns:
        A tensor.
    """
    query, key, value = _expand(queries, keys, ups)
    value_dim, missing = value.shape[-1], key.shape[-1] - value.shape[-1]
    if missing > 0:
        value = ops.pad(value, [[0, 0], [0, 0], [0, 0], [0, missing]])
    heads = ops.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else ops.expand_dims(mask, 1),
        scale=1.0,
        is_causal=mask is None,
    )
    return heads[..., :value_dim]


def _expand(
    queries: tuple[Any, Any], keys: tuple[Any, Any], ups: Sequence[Callable[[Any], Any]]
) -> tuple[Any, Any, Any]:
    """Returns queries and keys of both parts together, and values, of each head (bthd)."""
    key, value = (up(keys[0]) for up in ups)
    rotary = ops.broadcast_to(ops.expand_dims(keys[1], 2), (*ops.shape(key)[:3], keys[1].shape[-1]))
    return ops.concatenate(queries, axis=-1), ops.concatenate([key, rotary], axis=-1), value


def _attend_block(query: Any, key: Any, value: Any, mask: Any, drop: Callable[[Any], Any]) -> Any:
    """Returns the weighted values (bhtv) of queries (bhtd), keys (bhsd) and values (bhsv)."""
    weights = drop(_softmax(multiply_transposed(query, key), mask))
    return multiply_matrices(weights, value)


def _cut_mask(mask: Any, start: int, stop: int) -> Any:
    """Returns what a mask says of the queries from `start` to `stop` and the keys up to there."""
    if mask is None:
        return None
    if mask.shape[1] != 1:
        mask = mask[:, start:stop]
    return mask if mask.shape[2] == 1 else mask[:, :, :stop]


def attend_absorbed(
    queries: tuple[Any, Any],
    keys: tuple[Any, Any],
    mask: Any,
    kernels: Sequence[Any],
    drop: Callable[[Any], Any],
) -> Any:
    """Returns the same, with the expansion applied to the queries and to the weighted sums.

    Args:
        queries: Pair of tensors.
        keys: Pair of tensors.
        mask: Boolean tensor that broadcasts to (bts), or `None`.
        kernels: The tensors (chn) and (chv) that expand keys and values.
        drop: What drops some of the attention weights.

    Returns:
        A tensor.
    """
    weights = drop(_weigh_absorbed(queries, keys, mask, kernels[0]))
    return _sum_absorbed(weights, keys[0], kernels[1])


def attend_chosen(
    queries: tuple[Any, Any],
    keys: tuple[Any, Any],
    indices: Any,
    is_chosen: Any,
    kernels: Sequence[Any],
    drop: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """Returns the absorbed way's results over k keys a query, which are gathered.

    Args:
        queries: Pair of tensors.
        keys: Pair of tensors.
        indices: Integer tensor (btk). Which keys a query looks at, in any order.
        is_chosen: Boolean tensor (btk), false where there was no further key to look at.
        kernels: The tensors (chn) and (chv) that expand keys and values.
        drop: What drops some of the attention weights (bthk).

    Returns:
        The weighted values (bthv) and the attention weights (bthk), of which none is dropped.
    """
    batch_size, length, num_heads, _ = ops.shape(queries[0])
    gathered = [_gather(x, indices) for x in keys]
    # Each query has keys of its own, so that it is a sequence of one beside the others.
    alone = [_split_queries(x) for x in queries]
    is_chosen = _split_queries(is_chosen)
    weights = _weigh_absorbed(alone, gathered, is_chosen, kernels[0])
    shape = (batch_size, length, num_heads, weights.shape[-1])
    weights = ops.reshape(weights, shape)
    dropped = ops.reshape(drop(weights), (batch_size * length, num_heads, 1, shape[-1]))
    sums = _sum_absorbed(dropped, gathered[0], kernels[1])
    return ops.reshape(sums, (*shape[:3], kernels[1].shape[-1])), weights


def _gather(x: Any, indices: Any) -> Any:
    """Returns the rows of each query, from (bsc) and (btk) to (bt, k, c)."""
    batch_size, num_keys, dim = ops.shape(x)
    length, num_chosen = ops.shape(indices)[1:]
    first = ops.arange(batch_size, dtype="int32") * ops.cast(num_keys, "int32")
    rows = ops.reshape(indices + ops.reshape(first, (-1, 1, 1)), (-1,))
    taken = ops.take(ops.reshape(x, (batch_size * num_keys, dim)), rows, axis=0)
    return ops.reshape(taken, (batch_size * length, num_chosen, dim))


def _split_queries(x: Any) -> Any:
    """From (bt...) to (bt, 1, ...)."""
    shape = ops.shape(x)
    return ops.reshape(x, (shape[0] * shape[1], 1, *shape[2:]))


def _weigh_absorbed(queries: Sequence[Any], keys: Sequence[Any], mask: Any, key_kernel: Any) -> Any:
    """Returns the attention weights (bhts)."""
    compressed = ops.einsum("bthn,chn->bthc", queries[0], key_kernel)
    return _softmax(_score((compressed, queries[1]), keys), mask)


def _sum_absorbed(weights: Any, latent: Any, value_kernel: Any) -> Any:
    """Returns the weighted values (bthv)."""
    if weights.shape[2] == 1:  # As below, but that XLA copies no keys.
        sums = ops.expand_dims(multiply_matrices(ops.squeeze(weights, 2), latent), 1)
    else:
        sums = ops.einsum("bhts,bsc->bthc", weights, latent)
    # By heads first, as the product takes it: TensorFlow's is slower in putting it in that order.
    return ops.einsum("bthc,hcv->bthv", sums, ops.transpose(value_kernel, (1, 0, 2)))


def _score(queries: Sequence[Any], keys: Sequence[Any]) -> Any:
    """Returns the products (bhts) of queries (bthc) and keys (bsc) that heads share."""
    if queries[0].shape[1] != 1:
        first, second = map(partial(ops.einsum, "bthc,bsc->bhts"), queries, keys)
        return first + second
    # The same, but that TensorFlow copies no keys.
    first, second = map(partial(ops.einsum, "bsc,bthc->bsth"), keys, queries)
    return ops.transpose(first + second, (0, 3, 2, 1))


def _softmax(scores: Any, mask: Any) -> Any:
    """Returns the attention weights (bhts), of a softmax in float32."""
    dtype = scores.dtype
    scores = ops.cast(scores, promote_dtypes(dtype, "float32"))
    if mask is not None:
        scores = ops.where(ops.expand_dims(mask, 1), scores, HIDDEN)
    if scores.shape[-1] == 1:  # Keras warns of a softmax over one key, which has all the weight.
        return ops.cast(ops.exp(scores - scores), dtype)
    return ops.cast(ops.softmax(scores, axis=-1), dtype)
