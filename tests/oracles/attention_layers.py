"""A small layer of each kind of attention, causal, for what holds for all of them."""

import keras

from keras_deepseek import layers
from tests.oracles.deepseek_v4_layers import DIM, SIZES

ROTARY = {"use_interleaved_pairs": True}
"""The arguments of the rotary embedding of DeepSeek."""

_LATENT = {
    "num_heads": 2,
    "nope_head_dim": 3,
    "rope_head_dim": 2,
    "value_head_dim": 4,
    "key_value_lora_rank": 5,
    "rotary": layers.RotaryEmbedding(**ROTARY),
    "use_causal_mask": True,
}

ATTENTIONS = {
    "MultiHeadLatentAttention": _LATENT,
    "DeepSeekSparseAttention": _LATENT
    | {"index_top_k": 3, "index_num_heads": 6, "index_head_dim": 4},
    "BlockSparseAttention": {
        "num_heads": 2,
        "head_dim": 4,
        "block_size": 4,
        "sliding_window": 3,
        "use_causal_mask": True,
    },
    "NativeSparseAttention": {
        "num_heads": 4,
        "head_dim": 4,
        "num_key_value_heads": 2,
        "compression_block_size": 4,
        "compression_stride": 2,
        "selection_block_size": 4,
        "num_selected_blocks": 4,
        "sliding_window": 5,
        "rotary": layers.RotaryEmbedding(),
    },
    "GroupedQueryAttention": {
        "num_heads": 4,
        "head_dim": 4,
        "num_key_value_heads": 2,
        "rotary": layers.RotaryEmbedding(),
    },
    "LinearAttention": {"num_heads": 2, "head_dim": 4, "use_causal_mask": True},
    **SIZES,
    "CachedAttention": {},
}


def make_attention(kind, /, **kwargs):
    """Returns a layer of a class of `ATTENTIONS`, built for tokens of `DIM` numbers."""
    kwargs = {**ATTENTIONS[kind], **kwargs}
    if kind == "CachedAttention":
        kwargs["attention"] = keras.layers.MultiHeadAttention(2, 4)
    layer = getattr(layers, kind)(**kwargs)
    layer.build((None, None, DIM))
    return layer
