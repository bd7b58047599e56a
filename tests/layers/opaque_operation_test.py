"""Symbolic calls: the graph room traces a layer's `call` on `keras.KerasTensor`s."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend, layers
from keras_deepseek.layers.opaque_operation import call_opaque
from keras_deepseek.models.encoder.transformer_encoder import (
    PositionEmbedding,
    TransformerEncoderBlock,
)

LATENT = {
    "nope_head_dim": 4,
    "rope_head_dim": 2,
    "value_head_dim": 4,
    "key_value_lora_rank": 4,
    "query_lora_rank": 4,
    "rotary": layers.RotaryEmbedding(use_interleaved_pairs=True),
    "use_causal_mask": True,
}
INDEXER = {"index_num_heads": 2, "index_head_dim": 4, "index_top_k": 3}
WINDOW = {
    "head_dim": 8,
    "rope_head_dim": 4,
    "query_lora_rank": 8,
    "num_output_groups": 2,
    "output_lora_rank": 8,
    "sliding_window": 4,
    "rotary": layers.RotaryEmbedding(use_interleaved_pairs=True),
}
BLOCKS = {"compression_block_size": 4, "compression_stride": 2, "selection_block_size": 4}


def make_moe(**arguments):
    router = layers.ExpertRouter(num_experts=4, num_experts_per_token=2)
    return layers.DeepSeekMoE(router, intermediate_dim=4, **arguments)


LAYERS = {
    "sliding window": lambda: layers.SlidingWindowAttention(4, **WINDOW),
    "rotary": layers.RotaryEmbedding,
    "position": lambda: PositionEmbedding(50),
    "cached": lambda: layers.CachedAttention(
        keras.layers.GroupQueryAttention(4, 2, 1), rotary=layers.RotaryEmbedding()
    ),
    "latent": lambda: layers.MultiHeadLatentAttention(2, **LATENT),
    "deepseek sparse": lambda: layers.DeepSeekSparseAttention(2, **LATENT, **INDEXER),
    "deepseek sparse, chunks": lambda: layers.DeepSeekSparseAttention(
        2, **LATENT, **INDEXER, chunk_size=8
    ),
    "linear": lambda: layers.LinearAttention(2, head_dim=4, chunk_size=8),
    "compressed sparse": lambda: layers.CompressedSparseAttention(
        4, **WINDOW, **INDEXER, compress_rate=4
    ),
    "heavily compressed": lambda: layers.HeavilyCompressedAttention(4, **WINDOW, compress_rate=4),
    "native sparse": lambda: layers.NativeSparseAttention(
        2, head_dim=4, **BLOCKS, num_selected_blocks=3, rotary=layers.RotaryEmbedding()
    ),
    "block sparse": lambda: layers.BlockSparseAttention(
        2, head_dim=4, block_size=4, sliding_window=1
    ),
    "mixture of experts": make_moe,
    "mixture of experts, capacity": lambda: make_moe(capacity_factor=1.0),
    "hyper-connections": lambda: layers.ManifoldConstrainedHyperConnections(layers.SwiGLU(4)),
    "encoder block": lambda: TransformerEncoderBlock(num_heads=2, intermediate_dim=8),
}


@pytest.mark.each_backend
@pytest.mark.parametrize("name", LAYERS)
def test_a_call_on_symbols_keeps_the_shape(name):
    layer, shape = LAYERS[name](), (2, 21, 8)
    if name == "hyper-connections":
        shape = (2, 21, 2, 8)
    layer(keras.KerasTensor(shape))
    with keras.StatelessScope():
        assert layer.call(keras.KerasTensor(shape)).shape == shape


def test_a_mask_may_be_a_symbol_of_chunks_too():
    layer = layers.DeepSeekSparseAttention(2, **LATENT, **INDEXER, chunk_size=8)
    tokens, mask = keras.KerasTensor((2, 21, 8)), keras.KerasTensor((2, 21), "bool")
    layer(tokens)
    assert layer.call(tokens, mask=mask).shape == (2, 21, 8)


def test_a_long_causal_attention_and_losses_take_symbols():
    layer = layers.MultiHeadLatentAttention(2, **LATENT)
    layer.build((2, 300, 8))
    assert layer.call(keras.KerasTensor((2, 300, 8))).shape == (2, 300, 8)
    head = layers.ChunkedCrossEntropy(7, loss_weight=0.0)
    head.build((2, 5, 8))
    losses = head.call(keras.KerasTensor((2, 5, 8)), keras.KerasTensor((2, 5), "int32"))
    assert losses.shape == (2, 5)


@pytest.mark.each_backend
def test_a_function_of_the_backend_is_one_operation_of_a_graph():
    inputs = keras.Input((4,))
    outputs = call_opaque(lambda x: backend.current().compute.top_k(x, 2), inputs)
    values, indices = keras.Model(inputs, outputs)(np.array([[1.0, 3.0, 3.0, 2.0]], "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(values), [[3.0, 3.0]])
    np.testing.assert_array_equal(ops.convert_to_numpy(indices), [[1, 2]])
