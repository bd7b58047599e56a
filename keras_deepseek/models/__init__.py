"""Models: a folder a family, each with its config, its backbone and its tasks.

All of them are plain Functional `keras.Model`s.
"""

from keras_deepseek.models.decoder import DecoderBlock, MultiTokenLoss, TokenLogits
from keras_deepseek.models.deepseek_v4 import (
    DeepSeekV4Backbone,
    DeepSeekV4CausalLM,
    DeepSeekV4Config,
    DeepSeekV4DecoderLayer,
    DeepSeekV4TokenPrediction,
)
from keras_deepseek.models.residual_image_classifier import (
    ResidualBackbone,
    ResidualImageClassifier,
    ResidualImageClassifierConfig,
)

__all__ = [
    "DecoderBlock",
    "DeepSeekV4Backbone",
    "DeepSeekV4CausalLM",
    "DeepSeekV4Config",
    "DeepSeekV4DecoderLayer",
    "DeepSeekV4TokenPrediction",
    "MultiTokenLoss",
    "ResidualBackbone",
    "ResidualImageClassifier",
    "ResidualImageClassifierConfig",
    "TokenLogits",
]
