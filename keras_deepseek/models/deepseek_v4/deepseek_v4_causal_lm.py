"""The causal language model of DeepSeek-V4, which predicts the next token."""

from collections.abc import Collection
from typing import Any, ClassVar

import keras

from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.deepseek_models import DeepSeekCausalLM
from keras_deepseek.models.decoder.token_logits import TokenLogits
from keras_deepseek.models.deepseek_v4.checkpoint_map import (
    COPIED_TENSORS,
    FLOAT32_TENSORS,
    checkpoint_entries,
    module_entries,
)
from keras_deepseek.models.deepseek_v4.config import DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.deepseek_v4_backbone import (
    DeepSeekV4Backbone,
    make_decoder_layer,
    make_initializer,
)
from keras_deepseek.models.deepseek_v4.deepseek_v4_token_prediction import (
    DeepSeekV4TokenPrediction,
)
from keras_deepseek.models.deepseek_v4.family import DEEPSEEK_V4


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

    Call arguments:
        inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
            `"padding_mask"` of the same shape, 0 for padding.

    Returns:
        A tensor of shape `(batch_size, length, vocabulary_size)`, float32 or better. At each
        position, the logits of the next token.

    Raises:
        InvalidInputError: Sequences are longer than the config's `max_length`.

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
