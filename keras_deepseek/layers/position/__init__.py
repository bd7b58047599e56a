"""Layers that tell where a token stands."""

from keras_deepseek.layers.position.rotary_embedding import RotaryEmbedding

__all__ = ["RotaryEmbedding"]
