"""The DeepSeek-V2 family of language models."""

from keras_deepseek.models.deepseek_v2.config import DeepSeekV2Config
from keras_deepseek.models.deepseek_v2.deepseek_v2_backbone import DeepSeekV2Backbone
from keras_deepseek.models.deepseek_v2.deepseek_v2_causal_lm import DeepSeekV2CausalLM

__all__ = ["DeepSeekV2Backbone", "DeepSeekV2CausalLM", "DeepSeekV2Config"]
