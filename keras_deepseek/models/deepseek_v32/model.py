"""The backbone and the causal language model of DeepSeek-V3.2."""

from typing import ClassVar

import keras

from keras_deepseek.layers import DeepSeekSparseAttention
from keras_deepseek.models.decoder.deepseek_models import DeepSeekBackbone, DeepSeekCausalLM
from keras_deepseek.models.deepseek_v32.config import DEEPSEEK_V32, DeepSeekV32Config


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV32Backbone(DeepSeekBackbone):
    """The blocks of DeepSeek-V3.2, with the token embedding before and a norm after them.

    Choose it to build another head than `DeepSeekV32CausalLM`'s. Each block is a `DecoderBlock` of
    `DeepSeekSparseAttention` and `DeepSeekMoE`; the first blocks have a dense feed-forward layer.

    Args:
        config: `DeepSeekV32Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

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


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekV32CausalLM(DeepSeekCausalLM):
    """DeepSeek-V3.2 as a language model: logits of the next token at each position.

    Choose it for long contexts. It is DeepSeek-V3 with attention to only those keys that an indexer
    selects.

    If the config has `num_prediction_layers`, training adds the loss of a `MultiTokenPrediction`
    with that many modules. Outputs and decoding do not change.

    Args:
        config: `DeepSeekV32Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import DeepSeekV32CausalLM, DeepSeekV32Config
    >>> model = DeepSeekV32CausalLM(DeepSeekV32Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [DeepSeek-V3.2 (DeepSeek-AI, 2025)](https://arxiv.org/abs/2512.02556)
    """

    architectures: ClassVar[tuple[str, ...]] = DEEPSEEK_V32.architectures
    config_class: ClassVar[type] = DeepSeekV32Config
    backbone_class: ClassVar[type] = DeepSeekV32Backbone
