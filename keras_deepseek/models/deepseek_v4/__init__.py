"""The DeepSeek-V4 family of language models, with compressed attention and residual streams."""

from keras_deepseek.models.deepseek_v4.config import DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.deepseek_v4_backbone import DeepSeekV4Backbone
from keras_deepseek.models.deepseek_v4.deepseek_v4_causal_lm import DeepSeekV4CausalLM
from keras_deepseek.models.deepseek_v4.deepseek_v4_decoder_layer import DeepSeekV4DecoderLayer
from keras_deepseek.models.deepseek_v4.deepseek_v4_token_prediction import (
    DeepSeekV4TokenPrediction,
)

__all__ = [
    "DeepSeekV4Backbone",
    "DeepSeekV4CausalLM",
    "DeepSeekV4Config",
    "DeepSeekV4DecoderLayer",
    "DeepSeekV4TokenPrediction",
]
