"""The lightning indexer in float64 NumPy: the scores, and which keys are the best."""

import numpy as np

from tests.oracles.rotary_embedding import rotary_embedding


def index_scores(x, queries, weights, frequencies, amplitude=1.0, epsilon=1e-6):
    """Returns the score of every key for every query, of shape (batch, length, length).

    `weights` by the layer's names, such as `query_up/kernel`; `queries` are what queries are made
    from. `frequencies` are those of the rotated part, `amplitude` that of its rotation.
    """
    w = {name: np.asarray(array, "float64") for name, array in weights.items()}
    x, queries = np.asarray(x, "float64"), np.asarray(queries, "float64")
    rope_dim = 2 * len(frequencies)
    positions = np.arange(x.shape[1])[None]

    def rotate(x):
        turned = amplitude * rotary_embedding(x[..., :rope_dim], positions, frequencies, False)
        return np.concatenate([turned, x[..., rope_dim:]], axis=-1)

    key = x @ w["key/kernel"]
    key = key - key.mean(axis=-1, keepdims=True)
    key = key / np.sqrt((key**2).mean(axis=-1, keepdims=True) + epsilon)
    key = rotate(key * w["key_norm/gamma"] + w["key_norm/beta"])
    num_heads, head_dim = w["query_up/kernel"].shape[1:]
    scores = 0.0
    for head in range(num_heads):
        query = rotate(queries @ w["query_up/kernel"][:, head])
        products = np.maximum(query @ key.swapaxes(1, 2) * head_dim**-0.5, 0.0)
        weight = (x @ w["head_weight/kernel"])[..., head : head + 1] * num_heads**-0.5
        scores = scores + weight * products
    return scores


def chosen_keys(scores, visible, num_keys):
    """Returns which of the visible keys are among the best, and the least gap to the others.

    Where the gap is that of rounding, another framework may choose others.
    """
    visible = np.broadcast_to(visible, scores.shape)
    scores = np.where(visible, scores, -np.inf)
    best = np.sort(scores, axis=-1)[..., ::-1]
    if num_keys >= scores.shape[-1]:
        return visible, np.inf
    edge, following = best[..., num_keys - 1], best[..., num_keys]
    is_real = np.isfinite(following)
    gaps = edge[is_real] - following[is_real]
    return visible & (scores >= edge[..., None]), gaps.min(initial=np.inf)
