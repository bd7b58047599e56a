"""The base class of the backbones of DeepSeek-V2, V3 and V3.2."""

from typing import Any, ClassVar

import keras

from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.decoder.deepseek_layers import make_backbone_layers
from keras_deepseek.models.layers_policy import read_policy


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
