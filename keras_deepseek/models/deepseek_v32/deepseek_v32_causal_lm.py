"""The causal language model of DeepSeek-V3.2, which predicts the next token."""

from typing import ClassVar

import keras

from keras_deepseek.models.decoder.deepseek_causal_lm import DeepSeekCausalLM
from keras_deepseek.models.deepseek_v32.config import DeepSeekV32Config
from keras_deepseek.models.deepseek_v32.deepseek_v32_backbone import DeepSeekV32Backbone
from keras_deepseek.models.deepseek_v32.family import DEEPSEEK_V32


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

    Call arguments:
        inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
            `"padding_mask"` of the same shape, 0 for padding.

    Returns:
        A tensor of shape `(batch_size, length, vocabulary_size)`, float32 or better. It carries the
        mask, so that Keras losses leave padding out.

    Raises:
        InvalidInputError: Sequences are longer than the config's `max_length`.

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
