"""The DeepSeek-V3.2 family of language models."""

from keras_deepseek.models.deepseek_v32.config import DeepSeekV32Config
from keras_deepseek.models.deepseek_v32.model import DeepSeekV32Backbone, DeepSeekV32CausalLM

__all__ = ["DeepSeekV32Backbone", "DeepSeekV32CausalLM", "DeepSeekV32Config"]
