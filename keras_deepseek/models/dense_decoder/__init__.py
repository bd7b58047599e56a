"""Language models without experts: Llama, Qwen2 and Qwen3, which share one backbone."""

from keras_deepseek.models.dense_decoder.config import LlamaConfig, Qwen2Config, Qwen3Config
from keras_deepseek.models.dense_decoder.model import (
    LlamaBackbone,
    LlamaCausalLM,
    Qwen2Backbone,
    Qwen2CausalLM,
    Qwen3Backbone,
    Qwen3CausalLM,
)

__all__ = [
    "LlamaBackbone",
    "LlamaCausalLM",
    "LlamaConfig",
    "Qwen2Backbone",
    "Qwen2CausalLM",
    "Qwen2Config",
    "Qwen3Backbone",
    "Qwen3CausalLM",
    "Qwen3Config",
]
