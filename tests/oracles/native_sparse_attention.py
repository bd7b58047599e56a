"""Native sparse attention in float64 NumPy: token by token, a mask over all keys in each branch."""

import numpy as np

from tests.oracles.rotary_embedding import rotary_embedding


def attend(query, key, value, is_visible):
    """One query over `(P, D)` keys, and its weights; zeros where nothing is shown."""
    weights = np.zeros(len(key))
    if is_visible.any():
        scores = key[is_visible] @ query / np.sqrt(len(query))
        weights[is_visible] = np.exp(scores - scores.max())
        weights /= weights.sum()
    return weights @ value, weights


def find_importance(weights, block_size, stride, num_blocks, chosen_size):
    """The sum of the paper's equation 9, whose blocks are numbered from 1."""
    importance = np.zeros(num_blocks)
    for j in range(1, num_blocks + 1):
        for m in range(chosen_size // stride):
            for n in range(block_size // stride):
                i = chosen_size // stride * j - m - n
                if 1 <= i <= len(weights):
                    importance[j - 1] += weights[i - 1]
    return importance


def choose(importance, now, block_size, num_chosen, num_first, num_local):
    """Returns the set of chosen blocks up to that of the token number `now`."""
    own_block = now // block_size
    fixed = {j for j in range(own_block + 1) if j < num_first or j > own_block - num_local}
    ranked = sorted(set(range(own_block + 1)) - fixed, key=lambda j: -importance[j])
    return fixed | set(ranked[: num_chosen - len(fixed)])


def compress(x, weights, name, block_size, stride):
    """From `(S, G, D)` to `(N, G, D)`."""
    num_blocks = max(0, (len(x) - block_size) // stride + 1)
    blocks = np.zeros((num_blocks, *x.shape[1:]))
    for i in range(num_blocks):
        for g in range(x.shape[1]):
            block = x[i * stride : i * stride + block_size, g] + weights[f"{name}/positions"][g]
            hidden = np.einsum("td,tdh->h", block, weights[f"{name}/up/kernel"])
            hidden = hidden + weights.get(f"{name}/up/bias", 0.0)
            hidden = hidden / (1 + np.exp(-hidden))
            blocks[i, g] = hidden @ weights[f"{name}/down/kernel"]
            blocks[i, g] += weights.get(f"{name}/down/bias", 0.0)
    return blocks


def native_sparse_attention(x, weights, config):
    """`weights` by the layer's names, such as `query/kernel`; `config` is that of the layer."""
    w = {name: np.asarray(array, "float64") for name, array in weights.items()}
    pairs = np.arange(config["head_dim"] // 2) / (config["head_dim"] // 2)
    rotary = config["rotary"]["config"]
    frequencies = rotary["max_wavelength"] ** -pairs
    stride, size = config["compression_stride"], config["compression_block_size"]
    chosen_size, window = config["selection_block_size"], config["sliding_window"]

    def rotate(y, positions):
        interleaved = rotary["use_interleaved_pairs"]
        return rotary_embedding(y[None], positions[None], frequencies, interleaved)[0]

    def attend_all(x):
        length = len(x)
        tokens = np.arange(length)

        def project(name):
            y = np.einsum("td,dhk->thk", x, w[f"{name}/kernel"])
            return y + w.get(f"{name}/bias", 0.0)

        query = rotate(project("query"), tokens)
        values = {branch: project(f"{branch}_value") for branch in ("selection", "window")}
        keys = {branch: rotate(project(f"{branch}_key"), tokens) for branch in values}
        far_key = compress(project("compression_key"), w, "compress_key", size, stride)
        far_value = compress(project("compression_value"), w, "compress_value", size, stride)
        first = np.arange(len(far_key)) * stride
        far_key = rotate(far_key, first)
        gates = 1 / (1 + np.exp(-project("gate")))
        heads = np.zeros((length, query.shape[1], far_value.shape[-1]))
        ratio = query.shape[1] // far_key.shape[1]
        for g in range(far_key.shape[1]):
            for now in range(length):
                of_group = range(g * ratio, (g + 1) * ratio)
                far = {
                    h: attend(
                        query[now, h], far_key[:, g], far_value[:, g], first + size <= now + 1
                    )
                    for h in of_group
                }
                importance = find_importance(
                    sum(weighting for _, weighting in far.values()),
                    size,
                    stride,
                    -(-length // chosen_size),
                    chosen_size,
                )
                chosen = choose(
                    importance,
                    now,
                    chosen_size,
                    config["num_selected_blocks"],
                    config["num_initial_blocks"],
                    config["num_local_blocks"],
                )
                masks = {
                    "selection": np.isin(tokens // chosen_size, list(chosen)) & (tokens <= now),
                    "window": (tokens <= now) & (tokens > now - window),
                }
                for h in of_group:
                    parts = [far[h][0]]
                    for branch, mask in masks.items():
                        key, value = keys[branch][:, g], values[branch][:, g]
                        parts.append(attend(query[now, h], key, value, mask)[0])
                    heads[now, h] = gates[now, h] @ np.array(parts)
        outputs = np.einsum("thk,hkd->td", heads, w["attention_output/kernel"])
        return outputs + w.get("attention_output/bias", 0.0)

    return np.array([attend_all(row) for row in np.asarray(x, "float64")])
