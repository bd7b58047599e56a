"""The backbone of DeepSeek-V3.2, which turns token ids into hidden states."""

from typing import ClassVar

import keras

from keras_deepseek.layers import DeepSeekSparseAttention
from keras_deepseek.layers.inherited_docs import complete_docstring
from keras_deepseek.models.decoder.deepseek_backbone import DeepSeekBackbone
from keras_deepseek.models.deepseek_v32.config import DeepSeekV32Config


@complete_docstring(DeepSeekBackbone)
@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV32Backbone(DeepSeekBackbone):
    """The blocks of DeepSeek-V3.2, with the token embedding before and a norm after them.

    Choose it to build another head than `DeepSeekV32CausalLM`'s. Each block is a `DecoderBlock` of
    `DeepSeekSparseAttention` and `DeepSeekMoE`; the first blocks have a dense feed-forward layer.

    Args:
        config: `DeepSeekV32Config`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV32Backbone, DeepSeekV32Config
    >>> backbone = DeepSeekV32Backbone(DeepSeekV32Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(backbone(inputs).shape)
    (1, 3, 64)

    Reference:

    - [DeepSeek-V3.2 (DeepSeek-AI, 2025)](https://arxiv.org/abs/2512.02556)
    """

    config_class: ClassVar[type] = DeepSeekV32Config
    attention_class: ClassVar[type[keras.Layer]] = DeepSeekSparseAttention
