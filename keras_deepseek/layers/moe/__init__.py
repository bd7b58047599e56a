"""Mixtures of experts: layers in which each token uses a few of many feed-forward blocks."""

from keras_deepseek.layers.moe.deepseek_moe import DeepSeekMoE
from keras_deepseek.layers.moe.expert_router import ExpertRouter
from keras_deepseek.layers.moe.hash_router import HashRouter

__all__ = ["DeepSeekMoE", "ExpertRouter", "HashRouter"]
