"""Attention over compressed keys and values, for `MultiHeadLatentAttention`.

There are two ways to compute it, naive and absorbed. `DeepSeekSparseAttention` has a third: the
absorbed way over keys that each query has chosen.

Shape suffixes:
    B: batch
    T: queries
    S: keys
    K: chosen keys of one query
    N: heads
    P: part of a head without a position
    R: rotary part of a head
    H: a whole query or key of a head, P + R
    V: value of a head
    C: compressed keys and values ("latent")
    D: queries of all sequences, B * T

"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from keras import ops

from keras_deepseek.backend.call_context import known_size
from keras_deepseek.layers.attention.head_attention import attend_heads, mask_softmax
from keras_deepseek.layers.attention.head_projection import project_tokens
from keras_deepseek.layers.double_precision import multiply_matrices


class LatentQueries(NamedTuple):
    """The scaled queries, in two parts: without a position (BTNP), and rotary (BTNR)."""

    nope: Any
    rope: Any


class LatentKeys(NamedTuple):
    """The keys that all heads share: compressed keys and values (BSC), and rotary keys (BSR)."""

    latent: Any
    rotary_key: Any


def is_absorbed_cheaper(
    query_length: int | None, key_length: int | None, expanded_dim: int, rank: int
) -> bool:
    """Returns True if absorbed latent attention needs fewer multiplications than naive attention.

    If one length is unknown, both count as equal. `expanded_dim` is the size of a head's value
    plus its key without the rotary part; `rank` that of the compressed keys and values.
    """
    if query_length is None or key_length is None:
        return expanded_dim > 2 * rank  # The comparison below at equal lengths.
    # Naive: expands each key and value from the rank, then attends to them.
    naive = key_length * expanded_dim * (rank + query_length)
    # Absorbed: projects queries and outputs to the rank and back, and attends there.
    absorbed = query_length * rank * (expanded_dim + 2 * key_length)
    return absorbed < naive


def attend_naive(
    queries: LatentQueries,
    keys: LatentKeys,
    mask_BTS: Any,
    ups: Sequence[Callable[[Any], Any]],
    drop: Callable[[Any], Any],
    *,
    is_causal: bool = False,
) -> Any:
    """Computes naive latent attention (BTNV): keys and values are expanded for each head.

    `mask_BTS` broadcasts to (BTS), or is `None`. `ups` are the two layers that expand compressed
    keys and values to BSNP and BSNV; `drop` is the dropout for attention weights. With `is_causal`,
    the mask hides all keys after key `t` from query `t`; they are then skipped.
    """
    return attend_heads(*_expand(queries, keys, ups), mask_BTS, drop, is_causal=is_causal)


def attend_fused(
    queries: LatentQueries,
    keys: LatentKeys,
    mask_BTS: Any,
    ups: Sequence[Callable[[Any], Any]],
) -> Any:
    """Computes `attend_naive` with the framework's fused attention operation.

    That operation takes keys and values of one size, so values are padded with zeros. There are as
    many queries as keys. `mask_BTS` broadcasts to (BTS); `None` is a causal mask.
    """
    query_BTNH, key_BSNH, value_BSNV = _expand(queries, keys, ups)
    value_dim, missing = value_BSNV.shape[-1], key_BSNH.shape[-1] - value_BSNV.shape[-1]
    if missing > 0:
        value_BSNV = ops.pad(value_BSNV, [[0, 0], [0, 0], [0, 0], [0, missing]])
    outputs_BTNV = ops.dot_product_attention(
        query_BTNH,
        key_BSNH,
        value_BSNV,
        mask=None if mask_BTS is None else ops.expand_dims(mask_BTS, 1),
        scale=1.0,
        is_causal=mask_BTS is None,
    )
    return outputs_BTNV[..., :value_dim]


def _expand(
    queries: LatentQueries, keys: LatentKeys, ups: Sequence[Callable[[Any], Any]]
) -> tuple[Any, Any, Any]:
    """Returns complete queries (BTNH), and keys (BSNH) and values (BSNV) expanded for each head."""
    latent_BSC, rotary_key_BSR = keys.latent, keys.rotary_key
    key_BSNP, value_BSNV = (project_tokens(up, latent_BSC) for up in ups)
    rotary_key_BSNR = ops.broadcast_to(
        ops.expand_dims(rotary_key_BSR, 2), (*ops.shape(key_BSNP)[:3], rotary_key_BSR.shape[-1])
    )
    return (
        ops.concatenate(queries, axis=-1),
        ops.concatenate([key_BSNP, rotary_key_BSNR], axis=-1),
        value_BSNV,
    )


def attend_absorbed(
    queries: LatentQueries,
    keys: LatentKeys,
    mask_BTS: Any,
    kernels: Sequence[Any],
    drop: Callable[[Any], Any],
) -> Any:
    """Computes absorbed latent attention (BTNV), which never expands keys and values.

    The key kernel (CNP) multiplies the queries, and the value kernel (CNV) the weighted sums.
    `mask_BTS` broadcasts to (BTS), or is `None`.
    """
    weights_BNTS = drop(_weigh_absorbed(queries, keys, mask_BTS, kernels[0]))
    return _sum_absorbed(weights_BNTS, keys.latent, kernels[1])


def attend_chosen(
    queries: LatentQueries,
    keys: LatentKeys,
    indices_BTK: Any,
    is_chosen_BTK: Any,
    kernels: Sequence[Any],
    drop: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """Computes absorbed latent attention of each query over the K keys that it has chosen.

    The keys of a query come in any order; `is_chosen_BTK` is false where no further key was left.
    `kernels` are (CNP) and (CNV). Returns the outputs (BTNV) and the attention weights (BTNK)
    before dropout.
    """
    # Each query has its own keys, so it becomes a sequence of one query: D is B * T, and "1" stands
    # for its single query.
    batch_size, length, num_heads, _ = ops.shape(queries.nope)
    keys_DKx = LatentKeys(*(_gather(x, indices_BTK) for x in keys))
    queries_D1Nx = LatentQueries(*map(_split_queries, queries))
    is_chosen_D1K = _split_queries(is_chosen_BTK)
    weights_DN1K = _weigh_absorbed(queries_D1Nx, keys_DKx, is_chosen_D1K, kernels[0])
    shape = (batch_size, length, num_heads, weights_DN1K.shape[-1])
    weights_BTNK = ops.reshape(weights_DN1K, shape)
    dropped_DN1K = ops.reshape(drop(weights_BTNK), (batch_size * length, num_heads, 1, shape[-1]))
    outputs_D1NV = _sum_absorbed(dropped_DN1K, keys_DKx.latent, kernels[1])
    return ops.reshape(outputs_D1NV, (*shape[:3], kernels[1].shape[-1])), weights_BTNK


def _gather(x_BSC: Any, indices_BTK: Any) -> Any:
    """Gathers the rows of `x_BSC` that each query has chosen: (B * T, K, C)."""
    batch_size, num_keys, dim = ops.shape(x_BSC)
    length, num_chosen = ops.shape(indices_BTK)[1:]
    first_B = ops.arange(batch_size, dtype="int32") * ops.cast(num_keys, "int32")
    rows = ops.reshape(indices_BTK + ops.reshape(first_B, (-1, 1, 1)), (-1,))
    chosen = ops.take(ops.reshape(x_BSC, (batch_size * num_keys, dim)), rows, axis=0)
    return ops.reshape(chosen, (batch_size * length, num_chosen, dim))


def _split_queries(x: Any) -> Any:
    """Reshapes (B, T, ...) to (B * T, 1, ...)."""
    shape = ops.shape(x)
    return ops.reshape(x, (shape[0] * shape[1], 1, *shape[2:]))


def _weigh_absorbed(
    queries: LatentQueries, keys: LatentKeys, mask_BTS: Any, kernel_CNP: Any
) -> Any:
    """Returns the attention weights of absorbed latent attention (BNTS)."""
    latent_query_BTNC = ops.einsum("btnp,cnp->btnc", queries.nope, kernel_CNP)
    return mask_softmax(_score((latent_query_BTNC, queries.rope), keys), mask_BTS)


def _sum_absorbed(weights_BNTS: Any, latent_BSC: Any, kernel_CNV: Any) -> Any:
    """Returns the outputs of absorbed latent attention (BTNV) from its attention weights."""
    if known_size(weights_BNTS.shape[2]) == 1:  # As below, but XLA copies no keys.
        sums_BTNC = ops.expand_dims(multiply_matrices(ops.squeeze(weights_BNTS, 2), latent_BSC), 1)
    else:
        sums_BTNC = ops.einsum("bnts,bsc->btnc", weights_BNTS, latent_BSC)
    # Heads first, as the product needs them: TensorFlow's own transposition is slower.
    kernel_NCV = ops.transpose(kernel_CNV, (1, 0, 2))
    return ops.einsum("btnc,ncv->btnv", sums_BTNC, kernel_NCV)


def _score(queries: Sequence[Any], keys: Sequence[Any]) -> Any:
    """Returns attention scores (BNTS): the sum of the products with and without rotary parts."""
    if known_size(queries[0].shape[1]) != 1:
        first_BNTS, second_BNTS = map(partial(ops.einsum, "btnc,bsc->bnts"), queries, keys)
        return first_BNTS + second_BNTS
    # The same, but TensorFlow copies no keys.
    first_BSTN, second_BSTN = map(partial(ops.einsum, "bsc,btnc->bstn"), keys, queries)
    return ops.transpose(first_BSTN + second_BSTN, (0, 3, 2, 1))
