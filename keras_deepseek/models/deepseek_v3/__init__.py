"""The DeepSeek-V3 family of language models."""

from keras_deepseek.models.deepseek_v3.config import DeepSeekV3Config
from keras_deepseek.models.deepseek_v3.deepseek_v3_backbone import DeepSeekV3Backbone
from keras_deepseek.models.deepseek_v3.deepseek_v3_causal_lm import DeepSeekV3CausalLM

__all__ = ["DeepSeekV3Backbone", "DeepSeekV3CausalLM", "DeepSeekV3Config"]
