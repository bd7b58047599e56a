"""Sparse attention in float64 NumPy: each pair of positions by itself, a mask over all."""

import numpy as np


def shown_pairs(
    length,
    *,
    block_size,
    use_causal_mask=False,
    sliding_window=None,
    global_blocks=(),
    block_stride=None,
    block_layout=None,
):
    """Returns which position (row) sees which (column), from the words of the documentation."""
    num_blocks = max(1, -(-length // block_size))
    special = {block % num_blocks for block in global_blocks if -num_blocks <= block < num_blocks}
    is_visible = np.zeros((length, length), bool)
    for i in range(length):
        for j in range(length):
            row, column = i // block_size, j // block_size
            is_visible[i, j] = (
                (sliding_window is not None and abs(i - j) < sliding_window)
                or row in special
                or column in special
                or (block_stride is not None and abs(row - column) % block_stride == 0)
                or (block_layout is not None and block_layout[row][column])
            ) and not (use_causal_mask and j > i)
    return is_visible


def masked_attention(query, key, value, mask):
    """`(B, S, H, D)` for queries, `(B, S, G, D)` for the others; a row without a pair gives zeros.

    `mask` is of shape `(S, S)`, or `(B, S, S)`.
    """
    query, key, value = (np.asarray(x, "float64") for x in (query, key, value))
    ratio = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, ratio, axis=2) for x in (key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    mask = np.broadcast_to(mask, (len(query), *mask.shape[-2:]))[:, None]
    scores = np.where(mask, scores, -np.inf)
    highest = scores.max(-1, keepdims=True, initial=-1e300)
    weights = np.exp(scores - highest)
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


def sparse_attention(x, query, key, value, output, mask):
    """Each of the four projections is a pair of kernel and bias."""
    x = np.asarray(x, "float64")
    q, k, v = (np.einsum("bsd,dhk->bshk", x, w) + b for w, b in (query, key, value))
    kernel, bias = output
    return np.einsum("bshk,hkd->bsd", masked_attention(q, k, v, mask), kernel) + bias
