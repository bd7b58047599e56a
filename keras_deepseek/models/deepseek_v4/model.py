"""The backbone and the causal language model of DeepSeek-V4."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import keras

from keras_deepseek.layers import (
    CompressedSparseAttention,
    DeepSeekMoE,
    ExpertRouter,
    HashRouter,
    HeavilyCompressedAttention,
    ResidualStreamCollapse,
    ResidualStreamExpansion,
    ReversibleEmbedding,
    RMSNormalization,
    RotaryEmbedding,
    SlidingWindowAttention,
)
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.config_model import read_policy
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.deepseek_models import DeepSeekCausalLM
from keras_deepseek.models.decoder.output_layers import TokenLogits
from keras_deepseek.models.deepseek_v4.checkpoint_map import (
    COPIED_TENSORS,
    FLOAT32_TENSORS,
    checkpoint_entries,
    module_entries,
)
from keras_deepseek.models.deepseek_v4.config import DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.family import DEEPSEEK_V4
from keras_deepseek.models.deepseek_v4.layers import (
    DeepSeekV4DecoderLayer,
    DeepSeekV4TokenPrediction,
)


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV4Backbone(DecoderBackbone):
    """The layers of DeepSeek-V4, from token ids to hidden states.

    Choose it to build another head than `DeepSeekV4CausalLM`'s. The embedded tokens are expanded to
    `num_streams` residual streams. `DeepSeekV4DecoderLayer`s mix these, `ResidualStreamCollapse`
    merges them, and an RMS norm follows. Padding may be anywhere: no token attends to it, and
    windows do not count it.

    The caches hold the last `sliding_window` tokens of each layer, and one entry for each window of
    tokens. They only go forward. A call with a smaller `cache_index` than the number of tokens in
    the cache raises an error, or gives wrong outputs if the index can't be read. To remove tokens,
    go on from a cache that was returned before them.

    Args:
        config: `DeepSeekV4Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV4Backbone, DeepSeekV4Config
    >>> config = DeepSeekV4Config.from_preset(
    ...     "tiny", layer_types=("sliding_attention",), router_types=("hash",)
    ... )
    >>> tokens = np.ones((1, 5), "int32")
    >>> outputs = DeepSeekV4Backbone(config)({"token_ids": tokens, "padding_mask": tokens})
    >>> tuple(outputs.shape)
    (1, 5, 64)

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    """

    config_class: ClassVar[type] = DeepSeekV4Config

    def __init__(self, config: DeepSeekV4Config, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = read_policy(dtype)
        super().__init__(
            config,
            ReversibleEmbedding(
                config.vocabulary_size,
                config.hidden_dim,
                tie_weights=config.tie_word_embeddings,
                embeddings_initializer=make_initializer(config),
                dtype=policy,
                name="token_embedding",
            ),
            [make_decoder_layer(config, index, policy) for index in range(config.num_layers)],
            RMSNormalization(epsilon=config.epsilon, dtype=policy, name="final_norm"),
            expansion=ResidualStreamExpansion(config.num_streams, dtype=policy, name="streams"),
            collapse=make_collapse(config, policy),
            **kwargs,
        )


def make_decoder_layer(config: DeepSeekV4Config, index: int, policy: Any) -> DeepSeekV4DecoderLayer:
    """Makes the DeepSeek-V4 decoder layer of a given index.

    Layers with an index of `config.num_layers` or more predict further tokens. They have sliding
    attention and a router by scores.
    """
    kind, router = "sliding_attention", "score"
    if index < config.num_layers:
        kind, router = config.layer_types[index], config.router_types[index]
    return DeepSeekV4DecoderLayer(
        _make_attention(config, kind, policy),
        _make_experts(config, router, index, policy),
        sinkhorn_iterations=config.sinkhorn_iterations,
        stream_epsilon=config.stream_epsilon,
        epsilon=config.epsilon,
        kernel_initializer=make_initializer(config),
        dtype=policy,
        name=f"transformer_layer_{index}",
    )


def make_collapse(config: DeepSeekV4Config, policy: Any) -> ResidualStreamCollapse:
    """Makes the layer that merges the residual streams into one hidden state."""
    return ResidualStreamCollapse(
        stream_epsilon=config.stream_epsilon,
        epsilon=config.epsilon,
        kernel_initializer=make_initializer(config),
        dtype=policy,
        name="collapse",
    )


def make_initializer(config: DeepSeekV4Config) -> keras.initializers.Initializer:
    """Returns a new initializer for the kernels of a model."""
    return keras.initializers.RandomNormal(stddev=config.initializer_range)


def _make_attention(config: DeepSeekV4Config, kind: str, policy: Any) -> SlidingWindowAttention:
    common: dict[str, Any] = {
        "num_heads": config.num_heads,
        "head_dim": config.head_dim,
        "rope_head_dim": config.rope_head_dim,
        "query_lora_rank": config.query_lora_rank,
        "num_output_groups": config.num_output_groups,
        "output_lora_rank": config.output_lora_rank,
        "sliding_window": config.sliding_window,
        "dropout": config.attention_dropout,
        "epsilon": config.epsilon,
        "kernel_initializer": make_initializer(config),
        "dtype": policy,
        "name": "attention",
    }
    if kind == "sliding_attention":
        rotary = _make_rotary(config, config.rope_max_wavelength, config.rope_scaling)
        return SlidingWindowAttention(**common, rotary=rotary)
    common["rotary"] = _make_rotary(
        config, config.compress_rope_max_wavelength, config.compress_rope_scaling
    )
    if kind == "heavily_compressed_attention":
        return HeavilyCompressedAttention(**common, compress_rate=config.heavy_compress_rate)
    return CompressedSparseAttention(
        **common,
        compress_rate=config.sparse_compress_rate,
        index_num_heads=config.index_num_heads,
        index_head_dim=config.index_head_dim,
        index_top_k=config.index_top_k,
    )


def _make_rotary(
    config: DeepSeekV4Config, max_wavelength: float, scaling: Mapping[str, Any] | None
) -> RotaryEmbedding:
    if scaling is not None and scaling["rope_type"] == "yarn":
        scaling = {"attention_factor": 1.0, **scaling}  # Unlike transformers' default for YaRN.
    return RotaryEmbedding(
        max_wavelength,
        use_interleaved_pairs=True,
        scaling=None if scaling is None else dict(scaling),
        max_length=config.max_length,
    )


def _make_experts(config: DeepSeekV4Config, kind: str, index: int, policy: Any) -> DeepSeekMoE:
    common: dict[str, Any] = {
        "num_experts": config.num_experts,
        "num_experts_per_token": config.num_experts_per_token,
        "scoring": config.scoring,
        "routed_scale": config.routed_scale,
        "kernel_initializer": make_initializer(config),
        "dtype": policy,
        "name": "router",
    }
    router = ExpertRouter(**common)
    if kind == "hash":  # The seed gives each layer another assignment of experts.
        router = HashRouter(vocabulary_size=config.vocabulary_size, seed=index, **common)
    return DeepSeekMoE(
        router,
        config.moe_intermediate_dim,
        clamp=config.clamp,
        kernel_initializer=make_initializer(config),
        dtype=policy,
        name="feed_forward",
    )


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV4CausalLM(DeepSeekCausalLM):
    """DeepSeek-V4 as a language model: logits of the next token at each position.

    Choose it for very long sequences. Attention reads a short window of tokens, and compressed
    entries of everything before it, so the cache stays small. Logits are in float32 under any
    policy.

    With `num_prediction_layers`, further layers after the model predict tokens further ahead.
    Training adds their loss. The outputs stay the logits of the next token.

    The caches only go forward. So generation starts again for each prompt, and can't draft tokens
    with the further layers: a wrong draft could not be removed.

    Args:
        config: `DeepSeekV4Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV4CausalLM, DeepSeekV4Config
    >>> config = DeepSeekV4Config.from_preset(
    ...     "tiny", layer_types=("sliding_attention",), router_types=("hash",)
    ... )
    >>> model = DeepSeekV4CausalLM(config)
    >>> tokens = np.ones((1, 5), "int32")
    >>> tuple(model({"token_ids": tokens, "padding_mask": tokens}).shape)
    (1, 5, 256)

    Reference:

    - [DeepSeek-V4 (DeepSeek-AI, 2026)](https://huggingface.co/deepseek-ai/DeepSeek-V4-Flash-Base)
    """

    architectures: ClassVar[tuple[str, ...]] = DEEPSEEK_V4.architectures
    config_class: ClassVar[type] = DeepSeekV4Config
    backbone_class: ClassVar[type] = DeepSeekV4Backbone
    float32_tensors: ClassVar[tuple[str, ...]] = FLOAT32_TENSORS

    @staticmethod
    def make_prediction(backbone: DeepSeekV4Backbone) -> DeepSeekV4TokenPrediction:
        """Returns the layers that predict further tokens from the residual streams.

        Args:
            backbone: `DeepSeekV4Backbone`. Its config has `num_prediction_layers`.
        """
        config, policy = backbone.config, backbone.layers_policy
        return DeepSeekV4TokenPrediction(
            make_decoder_layer(config, config.num_layers, policy),
            backbone.token_embedding,
            TokenLogits(backbone.token_embedding, dtype=policy, name="prediction_logits"),
            depth=config.num_prediction_layers,
            loss_weight=config.prediction_loss_weight,
            epsilon=config.epsilon,
            stream_epsilon=config.stream_epsilon,
            kernel_initializer=make_initializer(config),
            dtype=policy,
            name="multi_token_prediction",
        )

    @property
    def ignored_tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """Patterns of the names of tensors in a checkpoint that are not read."""
        if self.config.num_prediction_layers:
            return COPIED_TENSORS
        return ("mtp.*",)

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return checkpoint_entries(self, tensors)

    def module_entries(self) -> list[CheckpointEntry]:
        return module_entries(self)

    @staticmethod
    def call_backbone(backbone: DecoderBackbone, inputs: Any) -> tuple[Any, Any]:
        """Returns hidden states, and the streams from which further layers predict.

        Args:
            backbone: `DecoderBackbone`.
            inputs: dict of tensors. The inputs of the model.
        """
        if not backbone.config.num_prediction_layers:
            return DeepSeekCausalLM.call_backbone(backbone, inputs)
        last = backbone.transformer_layers[-1].output
        both = keras.Model(backbone.input, [backbone.output, last], name="backbone_states")
        return tuple(both(inputs))
