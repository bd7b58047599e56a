"""Grouped-query attention in float64 NumPy, one head of queries after the other."""

import numpy as np

from tests.oracles.rotary_embedding import rotary_embedding


def grouped_query_attention(
    x, weights, frequencies, sizes, *, epsilon=1e-6, sliding_window=None, mask=None
):
    """`weights` by the layer's names; a missing bias or norm is none.

    `sizes` are the number of heads of queries, that of keys and values, and the size of a head.
    `mask` is of shape `(batch_size, length)`.
    """
    w = {name: np.asarray(array, "float64") for name, array in weights.items()}
    x = np.asarray(x, "float64")
    num_heads, num_pairs, dim = sizes
    positions = np.arange(x.shape[1])

    def project(name, head):
        part = slice(head * dim, (head + 1) * dim)
        bias = w.get(f"{name}/bias", np.zeros(num_heads * dim))
        return x @ w[f"{name}/kernel"][:, part] + bias[part]

    def rotate(head, name):
        if f"{name}/scale" in w:
            mean_square = (head**2).mean(axis=-1, keepdims=True)
            head = head / np.sqrt(mean_square + epsilon) * w[f"{name}/scale"]
        return rotary_embedding(head, positions[None], frequencies, interleaved=False)

    distance = positions[:, None] - positions
    visible = (distance >= 0) & (distance < (sliding_window or len(positions)))
    visible = visible[None] if mask is None else visible & np.asarray(mask)[:, None, :]
    heads = []
    for head in range(num_heads):
        pair = head * num_pairs // num_heads
        query = rotate(project("query", head), "query_norm")
        key = rotate(project("key", pair), "key_norm")
        scores = np.where(visible, query @ key.swapaxes(1, 2) * dim**-0.5, -np.inf)
        exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weighting = exponents / exponents.sum(axis=-1, keepdims=True)
        heads.append(weighting @ project("value", pair))
    outputs = np.concatenate(heads, axis=-1) @ w["output/kernel"]
    return outputs + w.get("output/bias", 0.0)
