"""Linear attention in float64 NumPy: one query after the other, each over its keys one by one."""

import numpy as np

from tests.oracles.rotary_embedding import rotary_embedding


def elu_plus_one(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def linear_attention(
    x,
    weights,
    *,
    feature_map=elu_plus_one,
    causal=False,
    epsilon=1e-6,
    mask=None,
    frequencies=None,
):
    """`weights` by the layer's names, such as `query/kernel`; a missing bias is none."""
    w = {name: np.asarray(array, "float64") for name, array in weights.items()}
    x = np.asarray(x, "float64")
    batch_size, length, _ = x.shape

    def project(name):
        return np.einsum("btd,dhk->bthk", x, w[f"{name}/kernel"]) + w.get(f"{name}/bias", 0.0)

    query, key, value = feature_map(project("query")), feature_map(project("key")), project("value")
    turned = query, key
    if frequencies is not None:
        turned = [rotary_embedding(y, np.arange(length)[None], frequencies) for y in turned]
    heads = np.zeros_like(value)
    for b in range(batch_size):
        for h in range(value.shape[2]):
            for i in range(length):
                numerator, denominator = np.zeros(value.shape[-1]), epsilon
                for j in range(i + 1 if causal else length):
                    if mask is None or mask[b, j]:
                        numerator += (turned[0][b, i, h] @ turned[1][b, j, h]) * value[b, j, h]
                        denominator += query[b, i, h] @ key[b, j, h]
                heads[b, i, h] = numerator / denominator
    outputs = np.einsum("bthk,hkd->btd", heads, w["attention_output/kernel"])
    return outputs + w.get("attention_output/bias", 0.0)
