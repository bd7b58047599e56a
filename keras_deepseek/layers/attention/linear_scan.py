"""The sums of linear attention, at a cost that grows linearly with the sequence length.

A token's sum over earlier tokens has two parts: its own chunk, by the products of all pairs in it,
and all earlier chunks, by a state that is summed from chunk to chunk. No step waits for the step
before it, as in a recurrence, and no matrix of length by length is made.

Shape suffixes: B batch, T tokens, N heads, F features of a query or key, V size of a value, M
chunks, C tokens in a chunk.
"""

from typing import Any

from keras import ops

from keras_deepseek.layers.double_precision import accumulate


def sum_over_all(query_BTNF: Any, key_BTNF: Any, value_BTNV: Any) -> Any:
    """Returns the sum over all tokens j of (query_i . key_j) value_j, for each token i (BTNV)."""
    state_BNFV = ops.einsum("btnf,btnv->bnfv", key_BTNF, value_BTNV)
    return ops.einsum("btnf,bnfv->btnv", query_BTNF, state_BNFV)


def sum_over_earlier(
    query_BTNF: Any, key_BTNF: Any, value_BTNV: Any, state_BNFV: Any, chunk_size: int
) -> tuple[Any, Any]:
    """Returns the sum over the tokens j <= i and over earlier calls (BTNV), and the new state.

    The first state is zeros. `chunk_size`, the most tokens of a chunk, changes only the cost.
    """
    length, num_tokens = query_BTNF.shape[1], ops.shape(query_BTNF)[1]
    size = chunk_size if length is None else max(1, min(chunk_size, length))
    query_BMCNF, key_BMCNF, value_BMCNV = (
        _split(x, length, size) for x in (query_BTNF, key_BTNF, value_BTNV)
    )
    scores_BMNCC = ops.tril(ops.einsum("bminf,bmjnf->bmnij", query_BMCNF, key_BMCNF))
    sums_BMCNV = ops.einsum("bmnij,bmjnv->bminv", scores_BMNCC, value_BMCNV)

    by_chunk_BMNFV = ops.einsum("bmjnf,bmjnv->bmnfv", key_BMCNF, value_BMCNV)
    states_BMNFV = accumulate(
        ops.concatenate([ops.expand_dims(state_BNFV, 1), by_chunk_BMNFV], axis=1), axis=1
    )
    earlier_BMCNV = ops.einsum("bminf,bmnfv->bminv", query_BMCNF, states_BMNFV[:, :-1])
    sums_BMCNV = sums_BMCNV + earlier_BMCNV
    batch_size, num_chunks = ops.shape(sums_BMCNV)[:2]
    sums_BTNV = ops.reshape(sums_BMCNV, (batch_size, num_chunks * size, *sums_BMCNV.shape[3:]))
    return sums_BTNV[:, :num_tokens], states_BMNFV[:, -1]


def _split(x: Any, length: int | None, size: int) -> Any:
    """Splits (B, T, N, F) into chunks (B, M, C, N, F), the last one padded with zeros."""
    real = ops.shape(x)[1]
    # An unknown length may lack at most `size - 1` tokens of a full chunk.
    fill = size - 1 if length is None else -length % size
    if fill:
        x = ops.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0)))
    num_chunks = (real + fill) // size
    x = x[:, : num_chunks * size]
    return ops.reshape(x, (ops.shape(x)[0], num_chunks, size, *x.shape[2:]))
