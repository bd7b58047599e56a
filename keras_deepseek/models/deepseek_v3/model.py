"""The backbone and the causal language model of DeepSeek-V3."""

from typing import ClassVar

import keras

from keras_deepseek.layers import MultiHeadLatentAttention
from keras_deepseek.models.decoder.deepseek_models import DeepSeekBackbone, DeepSeekCausalLM
from keras_deepseek.models.deepseek_v3.config import DEEPSEEK_V3, DeepSeekV3Config


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV3Backbone(DeepSeekBackbone):
    """The blocks of DeepSeek-V3, with the token embedding before and a norm after them.

    Choose it to build another head than `DeepSeekV3CausalLM`'s. Each block is a `DecoderBlock` of
    `MultiHeadLatentAttention` and `DeepSeekMoE`; the first blocks have a dense feed-forward layer.

    Args:
        config: `DeepSeekV3Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV3Backbone, DeepSeekV3Config
    >>> backbone = DeepSeekV3Backbone(DeepSeekV3Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(backbone(inputs).shape)
    (1, 3, 64)

    Reference:

    - [DeepSeek-V3 Technical Report (DeepSeek-AI, 2024)](https://arxiv.org/abs/2412.19437)
    """

    config_class: ClassVar[type] = DeepSeekV3Config
    attention_class: ClassVar[type[keras.Layer]] = MultiHeadLatentAttention


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV3CausalLM(DeepSeekCausalLM):
    """DeepSeek-V3 as a language model: logits of the next token at each position.

    Choose it for the architecture of DeepSeek-V3 and R1. To DeepSeek-V2's latent attention and
    experts it adds a bias in the choice of experts, which follows their load, and modules that
    predict further tokens.

    If the config has `num_prediction_layers`, training adds the loss of a `MultiTokenPrediction`
    with that many modules. Outputs and decoding do not change.

    Args:
        config: `DeepSeekV3Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config
    >>> model = DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [DeepSeek-V3 Technical Report (DeepSeek-AI, 2024)](https://arxiv.org/abs/2412.19437)
    """

    architectures: ClassVar[tuple[str, ...]] = DEEPSEEK_V3.architectures
    config_class: ClassVar[type] = DeepSeekV3Config
    backbone_class: ClassVar[type] = DeepSeekV3Backbone
