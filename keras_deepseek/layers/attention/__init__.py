"""Layers in which positions attend to one another, and the cache that they share."""

from keras_deepseek.layers.attention.cached_attention import CachedAttention
from keras_deepseek.layers.attention.compressed.deepseek_sparse_attention import (
    DeepSeekSparseAttention,
)
from keras_deepseek.layers.attention.compressed.lightning_indexer import LightningIndexer
from keras_deepseek.layers.attention.multi_head_latent_attention import MultiHeadLatentAttention
from keras_deepseek.layers.attention.sparse.sparse_attention import SparseAttention

__all__ = [
    "CachedAttention",
    "DeepSeekSparseAttention",
    "LightningIndexer",
    "MultiHeadLatentAttention",
    "SparseAttention",
]
from keras_deepseek.layers.attention.linear_attention import LinearAttention
from keras_deepseek.layers.attention.sparse.native_sparse_attention import NativeSparseAttention

__all__ = [
    "CachedAttention",
    "LinearAttention",
    "MultiHeadLatentAttention",
    "NativeSparseAttention",
    "SparseAttention",
]
