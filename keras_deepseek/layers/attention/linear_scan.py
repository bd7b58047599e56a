"""The sums that linear attention is made of, at a cost that grows with the length.

A token's sum over those before it is split in two: over its own chunk, by the products of each pair
in it, and over all earlier chunks, by a state that is added up from chunk to chunk. No step waits
for the one before it, as in a recurrence, and no matrix of length by length is made.

Legend: B batch, S length, H heads, D features of a query and key, V size of a value, N chunks,
C tokens in a chunk.
"""

from typing import Any

from keras import ops

from keras_deepseek.layers.double_precision import accumulate


def sum_over_all(query: Any, key: Any, value: Any) -> Any:
    """Returns the sum over all tokens j of (query_i . key_j) value_j.

    Args:
        query: Tensor of shape `(B, S, H, D)`.
        key: Tensor of shape `(B, S, H, D)`.
        value: Tensor of shape `(B, S, H, V)`.

    Returns:
        A tensor of shape `(B, S, H, V)`.
    """
    return ops.einsum("bshd,bhdv->bshv", query, ops.einsum("bshd,bshv->bhdv", key, value))


def sum_over_earlier(
    query: Any, key: Any, value: Any, state: Any, chunk_size: int
) -> tuple[Any, Any]:
    """Returns the same sum over the tokens up to i alone, and over those of before.

    Args:
        query: Tensor of shape `(B, S, H, D)`.
        key: Tensor of shape `(B, S, H, D)`.
        value: Tensor of shape `(B, S, H, V)`.
        state: Tensor of shape `(B, H, D, V)`. What an earlier call returned, or zeros.
        chunk_size: integer. The most tokens of a chunk. It changes the cost alone.

    Returns:
        The sums, a tensor of shape `(B, S, H, V)`, and the new state.
    """
    length, num_tokens = query.shape[1], ops.shape(query)[1]
    size = chunk_size if length is None else max(1, min(chunk_size, length))
    query, key, value = (_split(x, length, size) for x in (query, key, value))
    scores = ops.tril(ops.einsum("bnihd,bnjhd->bnhij", query, key))
    sums = ops.einsum("bnhij,bnjhv->bnihv", scores, value)

    by_chunk = ops.einsum("bnjhd,bnjhv->bnhdv", key, value)
    states = accumulate(ops.concatenate([ops.expand_dims(state, 1), by_chunk], axis=1), axis=1)
    sums = sums + ops.einsum("bnihd,bnhdv->bnihv", query, states[:, :-1])
    batch_size, num_chunks = ops.shape(sums)[:2]
    sums = ops.reshape(sums, (batch_size, num_chunks * size, *sums.shape[3:]))
    return sums[:, :num_tokens], states[:, -1]


def _split(x: Any, length: int | None, size: int) -> Any:
    """From (B, S, H, D) to (B, N, C, H, D), the end filled up with zeros."""
    real = ops.shape(x)[1]
    fill = size - 1 if length is None else -length % size  # The most that may lack, where unknown.
    if fill:
        x = ops.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0)))
    num_chunks = (real + fill) // size
    x = x[:, : num_chunks * size]
    return ops.reshape(x, (ops.shape(x)[0], num_chunks, size, *x.shape[2:]))
