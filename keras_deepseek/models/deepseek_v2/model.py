"""The backbone and the causal language model of DeepSeek-V2."""

from typing import ClassVar

import keras

from keras_deepseek.layers import MultiHeadLatentAttention
from keras_deepseek.models.decoder.deepseek_models import DeepSeekBackbone, DeepSeekCausalLM
from keras_deepseek.models.deepseek_v2.config import DEEPSEEK_V2, DeepSeekV2Config


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV2Backbone(DeepSeekBackbone):
    """The blocks of DeepSeek-V2, with the token embedding before and a norm after them.

    Choose it to build another head than `DeepSeekV2CausalLM`'s. Each block is a `DecoderBlock` of
    `MultiHeadLatentAttention` and `DeepSeekMoE`; the first blocks have a dense feed-forward layer.

    Args:
        config: `DeepSeekV2Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV2Backbone, DeepSeekV2Config
    >>> backbone = DeepSeekV2Backbone(DeepSeekV2Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(backbone(inputs).shape)
    (1, 3, 64)

    Reference:

    - [DeepSeek-V2 (DeepSeek-AI, 2024)](https://arxiv.org/abs/2405.04434)
    """

    config_class: ClassVar[type] = DeepSeekV2Config
    attention_class: ClassVar[type[keras.Layer]] = MultiHeadLatentAttention


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV2CausalLM(DeepSeekCausalLM):
    """DeepSeek-V2 as a language model: logits of the next token at each position.

    Choose it for a mixture of experts that decodes with a small cache. Multi-head latent attention
    caches few numbers for each token, and a token uses only few of the model's parameters.

    If the config has `num_prediction_layers`, training adds the loss of a `MultiTokenPrediction`
    with that many modules. Outputs and decoding do not change.

    Args:
        config: `DeepSeekV2Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV2CausalLM, DeepSeekV2Config
    >>> model = DeepSeekV2CausalLM(DeepSeekV2Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [DeepSeek-V2 (DeepSeek-AI, 2024)](https://arxiv.org/abs/2405.04434)
    """

    architectures: ClassVar[tuple[str, ...]] = DEEPSEEK_V2.architectures
    config_class: ClassVar[type] = DeepSeekV2Config
    backbone_class: ClassVar[type] = DeepSeekV2Backbone
