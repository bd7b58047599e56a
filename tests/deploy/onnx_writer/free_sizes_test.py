"""Layers that choose by length elsewhere, in one ONNX file for all sizes, beside Keras."""

import keras
import numpy as np
import pytest

from keras_deepseek import layers
from tests.oracles.operation_case import check_operation

ROTARY = {"rotary": layers.RotaryEmbedding(use_interleaved_pairs=True)}
LATENT = {
    "nope_head_dim": 8,
    "rope_head_dim": 4,
    "value_head_dim": 8,
    "key_value_lora_rank": 16,
    "use_causal_mask": True,
    **ROTARY,
}
V4 = {
    "head_dim": 8,
    "rope_head_dim": 4,
    "query_lora_rank": 8,
    "num_output_groups": 2,
    "output_lora_rank": 8,
    "sliding_window": 4,
    **ROTARY,
}
INDEX = {"index_num_heads": 2, "index_head_dim": 8, "index_top_k": 3}


def mixture(router):
    return layers.DeepSeekMoE(router, intermediate_dim=16)


MAKERS = {
    "mixture of experts": lambda: mixture(layers.ExpertRouter(8, 2)),
    "sliding window": lambda: layers.SlidingWindowAttention(4, **V4),
    "compressed, all entries": lambda: layers.HeavilyCompressedAttention(4, compress_rate=3, **V4),
    "compressed, chosen entries": lambda: layers.CompressedSparseAttention(
        4, compress_rate=2, **INDEX, **V4
    ),
    "latent": lambda: layers.MultiHeadLatentAttention(4, **LATENT),
    "latent, chosen keys": lambda: layers.DeepSeekSparseAttention(4, **INDEX, **LATENT),
    "linear": lambda: layers.LinearAttention(2, head_dim=8, use_causal_mask=True, chunk_size=4),
    "linear in one chunk": lambda: layers.LinearAttention(2, head_dim=8, use_causal_mask=True),
}


@pytest.mark.parametrize(
    "name",
    [
        *("mixture of experts", "compressed, chosen entries"),
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in [
                *("sliding window", "compressed, all entries", "latent", "latent, chosen keys"),
                *("linear", "linear in one chunk"),
            ]
        ),
    ],
)
def test_one_file_for_any_length(name):
    embedding = keras.layers.Embedding(30, 16, mask_zero=True)
    tokens = np.random.default_rng(0).integers(1, 30, (4, 12)).astype("int32")
    tokens[1, 9:] = tokens[2, 1:] = 0
    layer = MAKERS[name]()
    check_operation(
        lambda tokens: layer(embedding(tokens)),
        tokens,
        free_axes=(1,),
        lengths=(1, 2, 3, 5, 18, 33, 150),
    )


def test_axes_of_two_free_sizes_are_joined():
    image = np.random.default_rng(0).normal(size=(2, 13, 13, 3)).astype("float32")
    convolution = keras.layers.Conv2D(4, 3, strides=2)
    check_operation(
        lambda image: keras.layers.Reshape((-1, 4))(convolution(image)),
        image,
        free_axes=(1, 2),
        lengths=(3, 8, 21),
    )


def test_a_free_size_is_none_of_a_cell():
    cells = [keras.layers.LSTMCell(units) for units in (11, 5)]
    layer = keras.layers.RNN(keras.layers.StackedRNNCells(cells))
    x = np.random.default_rng(0).normal(size=(4, 13, 7)).astype("float32")
    check_operation(layer, x, free_axes=(1,), lengths=(2, 9))


@pytest.mark.nightly
def test_the_path_of_a_known_length_stays():
    layer = layers.SlidingWindowAttention(4, **V4)
    x = np.random.default_rng(0).normal(size=(2, 12, 16)).astype("float32")
    proto = check_operation(layer, x)
    assert not any(node.op_type == "Range" for node in proto.graph.node)
