"""A model of each layer of this package, and a small decoder of them."""

from typing import Any

import keras

from integration_tests.export_matrix.custom_layers import IndexerScores, LatentDecodeStep
from keras_deepseek import layers
from keras_deepseek.models.residual_image_classifier import (
    ResidualImageClassifier,
    ResidualImageClassifierConfig,
)

Model = keras.Model
VOCABULARY, WIDTH = 30, 16
LATENT = {
    "nope_head_dim": 8,
    "rope_head_dim": 4,
    "value_head_dim": 8,
    "key_value_lora_rank": 16,
    "query_lora_rank": 12,
    "rotary": layers.RotaryEmbedding(use_interleaved_pairs=True),
    "use_causal_mask": True,
}
INDEX = {"index_num_heads": 2, "index_head_dim": 8}
V4 = {
    "head_dim": 8,
    "rope_head_dim": 4,
    "query_lora_rank": 8,
    "num_output_groups": 2,
    "output_lora_rank": 8,
    "rotary": layers.RotaryEmbedding(use_interleaved_pairs=True),
}


def _tokens() -> Any:
    return keras.Input((None,), dtype="int32", name="tokens")


def _over_tokens(layer: Any, length: int | None = None) -> Model:
    """Returns a model of one layer over embedded tokens, of which zero is padding."""
    inputs = keras.Input((length,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)(inputs)
    return Model(inputs, layers.Dense(5)(layer(x)))


def sparse_attention() -> Model:
    layer = layers.BlockSparseAttention(
        2, head_dim=8, block_size=4, use_causal_mask=True, sliding_window=8, global_blocks=[0]
    )
    return _over_tokens(layer, length=24)


def native_sparse_attention() -> Model:
    layer = layers.NativeSparseAttention(
        4,
        head_dim=8,
        num_key_value_heads=2,
        compression_block_size=4,
        compression_stride=2,
        selection_block_size=4,
        num_selected_blocks=3,
        sliding_window=4,
        rotary=layers.RotaryEmbedding(),
    )
    return _over_tokens(layer, length=24)


def linear_attention() -> Model:
    return _over_tokens(
        layers.LinearAttention(2, head_dim=8, use_causal_mask=True, chunk_size=4), length=24
    )


def linear_attention_free_length() -> Model:
    return _over_tokens(layers.LinearAttention(2, head_dim=8, use_causal_mask=True, chunk_size=4))


def latent_attention() -> Model:
    return _over_tokens(layers.MultiHeadLatentAttention(4, **LATENT))


def latent_attention_with_cache() -> Model:
    slots = 24
    inputs = {
        "new_token": keras.Input((1, WIDTH), name="new_token"),
        "latent": keras.Input((slots, 16), name="latent"),
        "rotary_key": keras.Input((slots, 4), name="rotary_key"),
        "filled": keras.Input((slots,), dtype="bool", name="filled"),
        "index": keras.Input((), dtype="int32", name="index"),
    }
    outputs = LatentDecodeStep()(*inputs.values())
    names = ("outputs", "next_latent", "next_rotary_key", "next_filled")
    return Model(inputs, dict(zip(names, outputs, strict=True)))


def deepseek_sparse_attention() -> Model:
    return _over_tokens(layers.DeepSeekSparseAttention(4, index_top_k=3, **INDEX, **LATENT))


def lightning_indexer() -> Model:
    inputs = keras.Input((None, WIDTH), name="hidden")
    return Model(inputs, IndexerScores()(inputs))


def sliding_window_attention() -> Model:
    return _over_tokens(layers.SlidingWindowAttention(4, sliding_window=4, **V4))


def compressed_sparse_attention() -> Model:
    layer = layers.CompressedSparseAttention(
        4, compress_rate=2, index_top_k=3, sliding_window=4, **INDEX, **V4
    )
    return _over_tokens(layer)


def heavily_compressed_attention() -> Model:
    return _over_tokens(
        layers.HeavilyCompressedAttention(4, compress_rate=3, sliding_window=4, **V4)
    )


def cached_attention() -> Model:
    return _over_tokens(layers.CachedAttention(layers.MultiHeadAttention(4, 4)))


def rotary_embedding() -> Model:
    inputs = keras.Input((None, 2, 8), name="heads")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
    turned = [layers.RotaryEmbedding()(inputs), layers.RotaryEmbedding(scaling=yarn)(inputs)]
    return Model(inputs, turned)


def swiglu() -> Model:
    return _over_tokens(layers.SwiGLU(24, clamp=2.0))


def mixture_of_experts() -> Model:
    router = layers.ExpertRouter(8, 2, num_groups=4, num_groups_per_token=2)
    return _over_tokens(layers.DeepSeekMoE(router, intermediate_dim=16))


def expert_router() -> Model:
    inputs = keras.Input((None, WIDTH), name="hidden")
    weights, experts = layers.ExpertRouter(8, 2)(inputs)
    return Model(inputs, [weights, experts])


def hash_router() -> Model:
    inputs = _tokens()
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    experts = layers.DeepSeekMoE(layers.HashRouter(8, 2, VOCABULARY), intermediate_dim=16)
    return Model(inputs, experts(x, token_ids=inputs))


def hyper_connections() -> Model:
    inputs = _tokens()
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    x = layers.ResidualStreamExpansion(4)(x)
    for _ in range(2):
        x = layers.ManifoldConstrainedHyperConnections(layers.SwiGLU(24))(x)
    return Model(inputs, layers.Dense(5)(layers.ResidualStreamCollapse()(x)))


def vocabulary_head() -> Model:
    inputs = _tokens()
    embedding = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
    return Model(inputs, layers.ChunkedCrossEntropy(token_embedding=embedding)(embedding(inputs)))


def masked_position_head() -> Model:
    inputs = {"tokens": _tokens(), "places": keras.Input((3,), dtype="int32", name="places")}
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs["tokens"])
    head = layers.MaskedPositionHead(VOCABULARY, intermediate_activation="gelu")
    return Model(inputs, head(x, inputs["places"]))


def multi_token_prediction() -> Model:
    inputs = _tokens()
    embedding, head = layers.Embedding(VOCABULARY, WIDTH), layers.Dense(VOCABULARY)
    x = embedding(inputs)
    further = layers.MultiTokenPrediction(layers.SwiGLU(24), embedding, head, depth=2)
    return Model(inputs, [head(x), *further(x, inputs)])


def deepseek_decoder() -> Model:
    inputs = _tokens()
    embedding = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
    x = embedding(inputs)
    for block in range(2):
        attended = layers.MultiHeadLatentAttention(4, **LATENT)(layers.LayerNormalization()(x))
        x = layers.Add()([x, attended])
        router = layers.ExpertRouter(4, 2)
        mixed = layers.SwiGLU(24) if block == 0 else layers.DeepSeekMoE(router, intermediate_dim=16)
        x = layers.Add()([x, mixed(layers.LayerNormalization()(x))])
    return Model(inputs, layers.ChunkedCrossEntropy(token_embedding=embedding)(x))


def residual_image_classifier() -> Model:
    config = ResidualImageClassifierConfig(
        image_shape=(16, 16, 3), filters_per_stage=(8, 16), blocks_per_stage=(1, 1), num_classes=10
    )
    return ResidualImageClassifier(config)


MODELS = {
    builder.__name__: builder
    for builder in (
        sparse_attention,
        native_sparse_attention,
        linear_attention,
        linear_attention_free_length,
        latent_attention,
        latent_attention_with_cache,
        deepseek_sparse_attention,
        lightning_indexer,
        sliding_window_attention,
        compressed_sparse_attention,
        heavily_compressed_attention,
        cached_attention,
        rotary_embedding,
        swiglu,
        mixture_of_experts,
        expert_router,
        hash_router,
        hyper_connections,
        vocabulary_head,
        masked_position_head,
        multi_token_prediction,
        deepseek_decoder,
        residual_image_classifier,
    )
}
