"""Layers: those of this package, and Keras's own handed on, so that one import serves.

A model is built from these and from any other Keras layer; nothing here depends on how it is
trained, exported or served.
"""

from typing import Any

from keras_deepseek.backend.installed_keras import keras
from keras_deepseek.layers import predefined
from keras_deepseek.layers.attention.cached_attention import CachedAttention
from keras_deepseek.layers.attention.compressed.compressed_sparse_attention import (
    CompressedSparseAttention,
)
from keras_deepseek.layers.attention.compressed.deepseek_sparse_attention import (
    DeepSeekSparseAttention,
)
from keras_deepseek.layers.attention.compressed.heavily_compressed_attention import (
    HeavilyCompressedAttention,
)
from keras_deepseek.layers.attention.compressed.lightning_indexer import LightningIndexer
from keras_deepseek.layers.attention.linear_attention import LinearAttention
from keras_deepseek.layers.attention.multi_head_latent_attention import MultiHeadLatentAttention
from keras_deepseek.layers.attention.sliding_window_attention import SlidingWindowAttention
from keras_deepseek.layers.attention.sparse.native_sparse_attention import NativeSparseAttention
from keras_deepseek.layers.attention.sparse.sparse_attention import SparseAttention
from keras_deepseek.layers.feed_forward.swiglu import SwiGLU
from keras_deepseek.layers.heads import (
    ChunkedCrossEntropy,
    MaskedPositionHead,
    MultiTokenPrediction,
    SampledSoftmax,
)
from keras_deepseek.layers.moe import DeepSeekMoE, ExpertRouter, HashRouter
from keras_deepseek.layers.position.rotary_embedding import RotaryEmbedding
from keras_deepseek.layers.predefined import *  # noqa: F403 - its `__all__` is the explicit list
from keras_deepseek.layers.residual import (
    ManifoldConstrainedHyperConnections,
    ResidualStreamCollapse,
    ResidualStreamExpansion,
)

__all__ = [
    "CachedAttention",
    "ChunkedCrossEntropy",
    "CompressedSparseAttention",
    "DeepSeekMoE",
    "DeepSeekSparseAttention",
    "ExpertRouter",
    "HashRouter",
    "HeavilyCompressedAttention",
    "LightningIndexer",
    "LinearAttention",
    "ManifoldConstrainedHyperConnections",
    "MaskedPositionHead",
    "MultiHeadLatentAttention",
    "MultiTokenPrediction",
    "NativeSparseAttention",
    "ResidualStreamCollapse",
    "ResidualStreamExpansion",
    "RotaryEmbedding",
    "SampledSoftmax",
    "SlidingWindowAttention",
    "SparseAttention",
    "SwiGLU",
]
__all__ += predefined.__all__
__all__.sort()

_NEEDS_KERAS = {"ContrastLimitedAdaptiveHistogramEqualization": "3.14"}
"""Layers that the oldest supported Keras lacks, and the release that brought each."""


def __getattr__(name: str) -> Any:
    release = _NEEDS_KERAS.get(name)
    if release is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not hasattr(keras.layers, name):
        raise AttributeError(
            f"The layer {name!r} needs Keras {release} or later; Keras {keras.__version__} is "
            f"installed. Upgrade it with: pip install 'keras>={release}'"
        )
    return getattr(keras.layers, name)
