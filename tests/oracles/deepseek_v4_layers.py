"""Small layers of the three attentions of DeepSeek-V4, for the tests that they share."""

import numpy as np

from keras_deepseek import layers
from tests.oracles.parity import named_weights, read_cases

COMPRESSED_ROTARY = layers.RotaryEmbedding(160000.0, use_interleaved_pairs=True)
DIM = 6
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.0,
}

_WINDOW = {
    "num_heads": 4,
    "head_dim": 6,
    "rope_head_dim": 4,
    "query_lora_rank": 5,
    "num_output_groups": 2,
    "output_lora_rank": 3,
    "sliding_window": 3,
    "rotary": layers.RotaryEmbedding(use_interleaved_pairs=True),
}
SIZES = {
    "SlidingWindowAttention": _WINDOW,
    "CompressedSparseAttention": _WINDOW
    | {
        "index_num_heads": 16,  # With few, all may give a score of zero: a tie.
        "index_head_dim": 4,
        "index_top_k": 2,
        "compress_rate": 2,
        "rotary": COMPRESSED_ROTARY,
    },
    "HeavilyCompressedAttention": _WINDOW | {"compress_rate": 4, "rotary": COMPRESSED_ROTARY},
}
GOLDEN = read_cases("deepseek_v4_attention")


def make_v4_layer(kind, /, **kwargs):
    """Returns a layer of a class of `SIZES`, built, of whose weights none is zero."""
    layer = getattr(layers, kind)(**{**SIZES[kind], **kwargs})
    layer.build((None, None, DIM))
    rng = np.random.default_rng(0)
    for path, weight in named_weights(layer).items():
        if path == "sinks" or "position_bias" in path:
            weight.assign(rng.normal(size=weight.shape))
    return layer
