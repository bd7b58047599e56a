"""The attentions of DeepSeek-V4 in float64 NumPy: one sequence, one token, one head at a time."""

import keras
import numpy as np

from tests.oracles.parity import named_weights
from tests.oracles.rotary_embedding import rotary_embedding


def deepseek_v4_attention(layer, inputs, mask=None, positions=None):
    """What a built layer must compute, from its config and weights alone; zeros at padding."""
    config = layer.get_config()
    weights = {
        name: np.asarray(keras.ops.convert_to_numpy(weight), "float64")
        for name, weight in named_weights(layer).items()
    }
    outputs = np.zeros(inputs.shape)
    for row, sequence in enumerate(np.asarray(inputs, "float64")):
        real = np.ones(len(sequence), bool) if mask is None else np.asarray(mask[row], bool)
        at = np.arange(real.sum()) if positions is None else np.asarray(positions)[row, real]
        if real.any():
            outputs[row, real] = _attend(sequence[real], weights, config, at)
    return outputs


def _attend(x, w, config, positions):
    """One sequence of real tokens, of shape (length, dim)."""
    low = _norm(x @ w["query_down/kernel"], config) * w["query_norm/scale"]
    near = _norm(x @ w["key_value/kernel"], config) * w["key_value_norm/scale"]
    near = _rotate(near, positions, config)
    entries = np.zeros((0, config["head_dim"]))
    if "compress_rate" in config:
        entries = _compress(x, w, "compressor/", config, positions)
    outputs = np.zeros((len(x), config["num_heads"], config["head_dim"]))
    chosen = _choose(x, low, w, config, positions)
    for t in range(len(x)):
        keys = np.concatenate(
            [near[max(0, t - config["sliding_window"] + 1) : t + 1], entries[chosen[t]]]
        )
        for head in range(config["num_heads"]):
            query = _norm(low[t] @ w["query_up/kernel"][:, head], config)
            query = _rotate(query[None], positions[t : t + 1], config)[0]
            scores = np.append(keys @ query * config["head_dim"] ** -0.5, w["sinks"][head])
            exponents = np.exp(scores - scores.max())
            output = (exponents / exponents.sum())[:-1] @ keys
            outputs[t, head] = _rotate(output[None], -positions[t : t + 1], config)[0]
    grouped = outputs.reshape(len(x), config["num_output_groups"], -1)
    grouped = np.einsum("tgi,gir->tgr", grouped, w["output_down/kernel"])
    return np.einsum("tgr,grd->td", grouped, w["output/kernel"])


def _compress(x, w, prefix, config, positions):
    """The entries of all full windows."""
    rate, bias = config["compress_rate"], w[f"{prefix}position_bias"]
    value, gate = x @ w[f"{prefix}value/kernel"], x @ w[f"{prefix}gate/kernel"]
    dim = len(w[f"{prefix}norm/scale"])
    overlaps = value.shape[1] == 2 * dim
    entries = []
    for start in range(0, len(x) - rate + 1, rate):
        window = slice(start, start + rate)
        values, gates = value[window, -dim:], gate[window, -dim:] + bias[:, -dim:]
        if overlaps and start:
            previous_window = slice(start - rate, start)
            values = np.concatenate([value[previous_window, :dim], values])
            gates = np.concatenate([gate[previous_window, :dim] + bias[:, :dim], gates])
        exponents = np.exp(gates - gates.max(axis=0))
        entry = (exponents / exponents.sum(axis=0) * values).sum(axis=0)
        entry = _norm(entry, config) * w[f"{prefix}norm/scale"]
        entries.append(_rotate(entry[None], positions[start : start + 1], config)[0])
    return np.array(entries).reshape(-1, dim)


def _choose(x, low, w, config, positions):
    """The numbers of the entries that each token sees."""
    if "compress_rate" not in config:
        return [[]] * len(x)
    counts = [(t + 1) // config["compress_rate"] for t in range(len(x))]
    if "index_top_k" not in config:
        return [list(range(count)) for count in counts]
    keys = _compress(x, w, "indexer/compressor/", config, positions)
    chosen = []
    for t, count in enumerate(counts):
        queries = np.einsum("q,qji->ji", low[t], w["indexer/query_up/kernel"])
        queries = _rotate(queries, np.repeat(positions[t], len(queries)), config)
        scores = np.maximum(queries @ keys[:count].T, 0)
        order = np.argsort(-(x[t] @ w["indexer/head_weight/kernel"]) @ scores)
        chosen.append(order[: config["index_top_k"]].tolist())
    return chosen


def _norm(x, config):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config["epsilon"])


def _rotate(x, positions, config):
    """Rotates the last numbers of each row by the position beside it."""
    first, pairs = x.shape[-1] - config["rope_head_dim"], config["rope_head_dim"] // 2
    rotary = config["rotary"]["config"]
    assert rotary["scaling"] is None
    frequencies = rotary["max_wavelength"] ** -(np.arange(pairs) / pairs)
    turned = rotary_embedding(x[None, :, first:], positions[None], frequencies, interleaved=True)
    return np.concatenate([x[:, :first], turned[0]], axis=-1)
