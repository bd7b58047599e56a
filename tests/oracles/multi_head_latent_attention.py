"""Multi-head latent attention in float64 NumPy, one head after the other, as the papers have it."""

import numpy as np

from tests.oracles.rotary_embedding import rotary_embedding


def multi_head_latent_attention(
    x,
    weights,
    frequencies,
    scale,
    *,
    epsilon=1e-6,
    causal=True,
    interleaved=True,
    mask=None,
    collected=None,
):
    """`weights` by the layer's names, such as `key_up/kernel`; a missing bias is none.

    `mask` is of shape `(batch_size, length)` or `(batch_size, length, length)`. `collected` is a
    list that the attention weights of each head are put into.
    """
    w = {name: np.asarray(array, "float64") for name, array in weights.items()}
    x = np.asarray(x, "float64")
    length = x.shape[1]

    def project(x, name):
        return x @ w[f"{name}/kernel"] + w.get(f"{name}/bias", 0.0)

    def norm(x, name):
        mean_square = (x**2).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + epsilon) * w[f"{name}/scale"]

    def rotate(x):
        return rotary_embedding(x, np.arange(length)[None], frequencies, interleaved)

    queries = x
    if "query_down/kernel" in w:
        queries = norm(project(x, "query_down"), "query_norm")
    latent = norm(project(x, "key_value_down"), "key_value_norm")
    shared_key = rotate(project(x, "key_rope"))
    visible = np.tri(length, dtype=bool) if causal else np.ones((length, length), bool)
    visible = visible[None]
    if mask is not None:
        visible = visible & (mask if np.ndim(mask) > 2 else np.asarray(mask)[:, None, :])
    outputs = w.get("output/bias", 0.0)
    for head in range(w["query_up/kernel"].shape[1]):
        query = queries @ w["query_up/kernel"][:, head]
        key = latent @ w["key_up/kernel"][:, head]
        nope_dim = key.shape[-1]
        query = np.concatenate([query[..., :nope_dim], rotate(query[..., nope_dim:])], axis=-1)
        key = np.concatenate([key, shared_key], axis=-1)
        scores = np.where(visible, scale * query @ key.swapaxes(1, 2), -np.inf)
        exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weighting = exponents / exponents.sum(axis=-1, keepdims=True)
        if collected is not None:
            collected.append(weighting)
        value = latent @ w["value_up/kernel"][:, head]
        outputs = outputs + weighting @ value @ w["output/kernel"][head]
    return outputs
