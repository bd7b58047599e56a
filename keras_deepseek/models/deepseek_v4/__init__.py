"""The DeepSeek-V4 family of language models, with compressed attention and residual streams."""

from keras_deepseek.models.deepseek_v4.config import DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.layers import (
    DeepSeekV4DecoderLayer,
    DeepSeekV4TokenPrediction,
)
from keras_deepseek.models.deepseek_v4.model import DeepSeekV4Backbone, DeepSeekV4CausalLM

__all__ = [
    "DeepSeekV4Backbone",
    "DeepSeekV4CausalLM",
    "DeepSeekV4Config",
    "DeepSeekV4DecoderLayer",
    "DeepSeekV4TokenPrediction",
]
