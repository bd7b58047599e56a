"""Functions that build the layers of DeepSeek-V2, V3 and V3.2 from a config."""

from typing import Any

import keras

from keras_deepseek.layers import (
    DeepSeekMoE,
    ExpertRouter,
    MultiTokenPrediction,
    ReversibleEmbedding,
    RMSNormalization,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.decoder.token_logits import TokenLogits


def make_backbone_layers(
    config: DeepSeekConfig, attention_class: type[keras.Layer], policy: Any
) -> tuple[keras.Layer, list[keras.Layer], keras.Layer]:
    """Makes the token embedding, the blocks and the final norm of a backbone."""
    embedding = ReversibleEmbedding(
        config.vocabulary_size,
        config.hidden_dim,
        tie_weights=config.tie_word_embeddings,
        embeddings_initializer=_make_initializer(config),
        dtype=policy,
        name="token_embedding",
    )
    blocks = [
        make_decoder_block(config, attention_class, index, policy)
        for index in range(config.num_layers)
    ]
    return (
        embedding,
        blocks,
        RMSNormalization(epsilon=config.epsilon, dtype=policy, name="final_norm"),
    )


def make_decoder_block(
    config: DeepSeekConfig, attention_class: type[keras.Layer], index: int, policy: Any
) -> DecoderBlock:
    """Makes the decoder block of a given index, with routed experts or a dense feed-forward."""
    arguments = {"kernel_initializer": _make_initializer(config), "dtype": policy}
    attention = attention_class(
        **config.attention_arguments(),
        rotary=RotaryEmbedding(**config.rotary_arguments()),
        **arguments,
        name="attention",
    )
    feed_forward: keras.Layer
    if config.has_experts(index):
        router = ExpertRouter(**config.router_arguments(), **arguments, name="router")
        feed_forward = DeepSeekMoE(
            router,
            config.moe_intermediate_dim or 0,
            num_shared_experts=config.num_shared_experts,
            **arguments,
            name="feed_forward",
        )
    else:
        feed_forward = SwiGLU(config.intermediate_dim, **arguments, name="feed_forward")
    return DecoderBlock(
        attention,
        feed_forward,
        epsilon=config.epsilon,
        dtype=policy,
        name=f"transformer_layer_{index}",
    )


def make_multi_token_prediction(backbone: Any) -> MultiTokenPrediction:
    """Makes the multi-token prediction modules of a backbone."""
    config, policy = backbone.config, backbone.layers_policy
    embedding = backbone.token_embedding
    return MultiTokenPrediction(
        make_decoder_block(config, backbone.attention_class, config.num_layers, policy),
        embedding,
        TokenLogits(embedding, dtype=policy, name="prediction_logits"),
        depth=config.num_prediction_layers,
        loss_weight=config.prediction_loss_weight,
        use_output_norm=True,
        epsilon=config.epsilon,
        kernel_initializer=_make_initializer(config),
        dtype=policy,
        name="multi_token_prediction",
    )


def _make_initializer(config: DeepSeekConfig) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=config.initializer_range)
