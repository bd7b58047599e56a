"""The DeepSeek-V2 family of language models."""

from keras_deepseek.models.deepseek_v2.config import DeepSeekV2Config
from keras_deepseek.models.deepseek_v2.model import DeepSeekV2Backbone, DeepSeekV2CausalLM

__all__ = ["DeepSeekV2Backbone", "DeepSeekV2CausalLM", "DeepSeekV2Config"]
