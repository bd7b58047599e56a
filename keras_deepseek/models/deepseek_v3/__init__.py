"""The DeepSeek-V3 family of language models."""

from keras_deepseek.models.deepseek_v3.config import DeepSeekV3Config
from keras_deepseek.models.deepseek_v3.model import DeepSeekV3Backbone, DeepSeekV3CausalLM

__all__ = ["DeepSeekV3Backbone", "DeepSeekV3CausalLM", "DeepSeekV3Config"]
