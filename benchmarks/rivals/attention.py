"""Dense attention, Keras's own, and the sparse and linear ones, over one causal sequence.

The first three are given queries, keys and values. Then come whole layers, each where it exists,
with its projections from and to as many numbers as the heads have together; dense there is Keras's.
"""

from typing import Any

import keras
import numpy as np
from compiled import Rival
from keras import ops

import keras_deepseek.layers
from keras_deepseek.layers.attention.sparse.block_attention import attend_to_blocks
from keras_deepseek.layers.attention.sparse.block_plan import BlockLayout, plan_blocks

NUM_HEADS, HEAD_DIM, BLOCK_SIZE = 4, 64, 64
DIM = NUM_HEADS * HEAD_DIM
LAYOUT = BlockLayout(BLOCK_SIZE, is_causal=True, sliding_window=BLOCK_SIZE + 1, global_blocks=(0,))

ROTARY = keras_deepseek.layers.RotaryEmbedding(use_interleaved_pairs=True)

# Each sees a window and at most 256 keys beyond it, chosen among all or compressed from them.
LAYERS: dict[str, dict[str, Any]] = {
    "BlockSparseAttention": {
        "num_heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
        "block_size": BLOCK_SIZE,
        "use_causal_mask": True,
        "sliding_window": BLOCK_SIZE + 1,
        "global_blocks": [0],
    },
    "DeepSeekSparseAttention": {
        "num_heads": NUM_HEADS,
        "nope_head_dim": HEAD_DIM - 32,
        "rope_head_dim": 32,
        "value_head_dim": HEAD_DIM,
        "key_value_lora_rank": 2 * HEAD_DIM,
        "query_lora_rank": DIM,
        "rotary": ROTARY,
        "use_causal_mask": True,
        "index_top_k": 256,
        "index_num_heads": NUM_HEADS,
        "index_head_dim": HEAD_DIM,
    },
    "NativeSparseAttention": {
        "num_heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
        "num_key_value_heads": 1,
        "num_selected_blocks": 4,
        "rotary": keras_deepseek.layers.RotaryEmbedding(),
        "sliding_window": BLOCK_SIZE,
    },
    "CompressedSparseAttention": {
        "num_heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
        "rope_head_dim": 32,
        "query_lora_rank": DIM,
        "num_output_groups": 1,
        "output_lora_rank": DIM,
        "rotary": ROTARY,
        "index_num_heads": NUM_HEADS,
        "index_head_dim": HEAD_DIM,
        "index_top_k": 256,
        "sliding_window": BLOCK_SIZE,
    },
    "HeavilyCompressedAttention": {
        "num_heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
        "rope_head_dim": 32,
        "query_lora_rank": DIM,
        "num_output_groups": 1,
        "output_lora_rank": DIM,
        "rotary": ROTARY,
        "sliding_window": BLOCK_SIZE,
    },
    "LinearAttention": {"num_heads": NUM_HEADS, "head_dim": HEAD_DIM, "use_causal_mask": True},
}


def make_rivals(
    length: int, most_score_bytes: int
) -> tuple[dict[str, Rival], dict[str, dict[str, str]]]:
    """Returns the rivals, and which of them are left out and why."""
    rng = np.random.default_rng(0)
    heads = [
        ops.convert_to_tensor(rng.normal(size=(1, length, NUM_HEADS, HEAD_DIM)).astype("float32"))
        for _ in range(3)
    ]
    inputs = ops.convert_to_tensor(rng.normal(size=(1, length, DIM)).astype("float32"))
    rivals = {
        "dense einsum": Rival(dense, heads),
        "dot_product_attention": Rival(by_keras, heads),
        "sparse": Rival(sparse, heads),
        "MultiHeadAttention": _make_keras_layer(inputs),
    }
    for name, arguments in LAYERS.items():
        layer_class = getattr(keras_deepseek.layers, name, None)
        if layer_class is not None:
            rivals[name] = _make_layer(layer_class, arguments, inputs)
    score_bytes = 4 * NUM_HEADS * length**2
    skipped = {}
    if score_bytes > most_score_bytes:
        reason = f"a matrix of scores takes {score_bytes / 2**30:g} GiB"
        holding = ["dense einsum", "MultiHeadAttention"]
        if keras.backend.backend() != "torch":  # Whose flash path holds none.
            holding.append("dot_product_attention")
        skipped = {name: reason for name in holding if rivals.pop(name)}
    return rivals, {"skipped": skipped}


def dense(query: Any, key: Any, value: Any) -> Any:
    scores = ops.einsum("bqhd,bkhd->bhqk", query * HEAD_DIM**-0.5, key)
    positions = np.arange(query.shape[1], dtype="int32")
    scores = ops.where(ops.less_equal(positions, positions[:, None]), scores, -1e9)
    return ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), value)


def by_keras(query: Any, key: Any, value: Any) -> Any:
    return ops.dot_product_attention(query, key, value, is_causal=True)


def sparse(query: Any, key: Any, value: Any) -> Any:
    return attend_to_blocks(query, key, value, plan_blocks(LAYOUT, query.shape[1]))


def _make_keras_layer(inputs: Any) -> Rival:
    layer = keras.layers.MultiHeadAttention(NUM_HEADS, HEAD_DIM)
    layer.build(inputs.shape, inputs.shape)
    return Rival(lambda x: layer(x, x, use_causal_mask=True), [inputs], [layer])


def _make_layer(layer_class: type, arguments: dict[str, Any], inputs: Any) -> Rival:
    layer = layer_class(**arguments)
    layer.build(inputs.shape)
    return Rival(layer, [inputs], [layer])
