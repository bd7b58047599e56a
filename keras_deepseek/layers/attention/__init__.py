"""Layers in which positions attend to one another."""

from keras_deepseek.layers.attention.sparse_attention import SparseAttention

__all__ = ["SparseAttention"]
