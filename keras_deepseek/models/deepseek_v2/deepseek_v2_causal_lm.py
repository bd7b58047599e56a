"""The causal language model of DeepSeek-V2, which predicts the next token."""

from typing import ClassVar

import keras

from keras_deepseek.layers.inherited_docs import complete_docstring
from keras_deepseek.models.decoder.deepseek_causal_lm import DeepSeekCausalLM
from keras_deepseek.models.deepseek_v2.config import DeepSeekV2Config
from keras_deepseek.models.deepseek_v2.deepseek_v2_backbone import DeepSeekV2Backbone
from keras_deepseek.models.deepseek_v2.family import DEEPSEEK_V2


@complete_docstring(DeepSeekCausalLM)
@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV2CausalLM(DeepSeekCausalLM):
    """DeepSeek-V2 as a language model: logits of the next token at each position.

    Choose it for a mixture of experts that decodes with a small cache. Multi-head latent attention
    caches few numbers for each token, and a token uses only few of the model's parameters.

    If the config has `num_prediction_layers`, training adds the loss of a `MultiTokenPrediction`
    with that many modules. Outputs and decoding do not change.

    Args:
        config: `DeepSeekV2Config`.

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
