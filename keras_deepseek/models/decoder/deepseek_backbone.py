"""What the bodies of DeepSeek-V2, V3 and V3.2 have in common, which is all but the attention."""

from typing import Any, ClassVar

import keras

from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.deepseek_config import DeepSeekConfig
from keras_deepseek.models.decoder.deepseek_layers import make_backbone_layers
from keras_deepseek.models.layers_policy import read_policy


class DeepSeekBackbone(DecoderBackbone):
    """A `DecoderBackbone` of the blocks that a `DeepSeekConfig` describes.

    A family names its `config_class` and its `attention_class`.

    Args:
        config: `DeepSeekConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The policy of all layers; `None` takes the
            global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.
    """

    attention_class: ClassVar[type[keras.Layer]]
    """The class of the attention layers, those of modules that predict further tokens too."""

    def __init__(self, config: DeepSeekConfig, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = read_policy(dtype)
        layers = make_backbone_layers(config, self.attention_class, policy)
        super().__init__(config, *layers, **kwargs)
