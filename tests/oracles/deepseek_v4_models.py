"""Small models of DeepSeek-V4, and tokens for them, for the tests that they share."""

import keras
import numpy as np

from keras_deepseek.models import DeepSeekV4Config

SMALL = {
    "vocabulary_size": 31,
    "hidden_dim": 12,
    "num_heads": 4,
    "head_dim": 6,
    "rope_head_dim": 4,
    "query_lora_rank": 7,
    "num_output_groups": 2,
    "output_lora_rank": 5,
    "moe_intermediate_dim": 8,
    "num_experts": 5,
    "num_experts_per_token": 2,
    "layer_types": (
        "sliding_attention",
        "compressed_sparse_attention",
        "heavily_compressed_attention",
    ),
    "router_types": ("hash", "score", "score"),
    "sparse_compress_rate": 2,
    "heavy_compress_rate": 5,
    "index_num_heads": 16,  # With few, all may give a score of zero: a tie.
    "index_head_dim": 4,
    "index_top_k": 3,
    "sliding_window": 4,
    "num_streams": 3,
    "sinkhorn_iterations": 4,
    "max_length": 64,
}


def make_config(**kwargs):
    return DeepSeekV4Config(**{**SMALL, **kwargs})


def perturb(model, seed=0):
    """Returns a model whose weights are all far from zero and one, so that each shows."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "int" in keras.backend.standardize_dtype(weight.dtype) or "load" in weight.path:
            continue
        scale = 0.3 if len(weight.shape) < 2 else 1.0 / np.sqrt(weight.shape[-2])
        weight.assign(keras.ops.convert_to_numpy(weight) + scale * rng.normal(size=weight.shape))
    return model


def draw_tokens(batch_size, length, seed=0, vocabulary_size=31, mask=None):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary_size, (batch_size, length)).astype("int32")
    mask = np.ones_like(tokens) if mask is None else np.asarray(mask, "int32")
    return {"token_ids": tokens, "padding_mask": mask}
