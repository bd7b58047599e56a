"""The base classes of the backbones and causal language models of the DeepSeek families.

DeepSeek-V4 overrides more of the language model: it has its own layers that predict further tokens
and its own checkpoint map.
"""

from collections.abc import Collection
from typing import Any, ClassVar

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
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.config_model import read_policy
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.decoder.deepseek_checkpoint_map import (
    FLOAT32_TENSORS,
    deepseek_entries,
    unread_tensors,
)
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.decoder.output_layers import TokenLogits


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


class DeepSeekBackbone(DecoderBackbone):
    """A `DecoderBackbone` of DeepSeek-V2, V3 or V3.2, built from a `DeepSeekConfig`.

    A family sets its `config_class` and its `attention_class`.
    """

    attention_class: ClassVar[type[keras.Layer]]
    """The class of all attention layers, also in modules that predict further tokens."""

    def __init__(self, config: DeepSeekConfig, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = read_policy(dtype)
        layers = make_backbone_layers(config, self.attention_class, policy)
        super().__init__(config, *layers, **kwargs)


class DeepSeekCausalLM(CausalLM):
    """A `CausalLM` of a DeepSeek family, built from its config.

    A family sets its `architectures`, its `config_class` and its `backbone_class`.
    """

    backbone_class: ClassVar[type[Any]]
    """The class of the backbone, which takes the same arguments."""

    float32_tensors: ClassVar[tuple[str, ...]] = FLOAT32_TENSORS

    def __init__(self, config: Any, *, dtype: Any = None, **kwargs: Any) -> None:
        backbone = self.backbone_class(config, dtype=dtype, name="backbone")
        prediction = self.make_prediction(backbone) if config.num_prediction_layers else None
        super().__init__(backbone, multi_token_prediction=prediction, **kwargs)

    @staticmethod
    def make_prediction(backbone: Any) -> MultiTokenPrediction:
        """Returns the modules that predict further tokens.

        Args:
            backbone: The family's backbone. Its config has `num_prediction_layers`.
        """
        return make_multi_token_prediction(backbone)

    @property
    def ignored_tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Patterns of the names of tensors in a checkpoint that are not read."""
        return unread_tensors(self.config)

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return deepseek_entries(self, tensors)
