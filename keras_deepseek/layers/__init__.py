"""Layers of this package, and every public layer of the installed Keras.

Keras's layers are the identical classes. No layer depends on how a model is trained, exported or
served.
"""

import inspect
from typing import TYPE_CHECKING, Any

from keras_deepseek.backend.installed_keras import keras
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
from keras_deepseek.layers.attention.grouped_query_attention import GroupedQueryAttention
from keras_deepseek.layers.attention.linear_attention import LinearAttention
from keras_deepseek.layers.attention.multi_head_latent_attention import MultiHeadLatentAttention
from keras_deepseek.layers.attention.sliding_window_attention import SlidingWindowAttention
from keras_deepseek.layers.attention.sparse.block_sparse_attention import BlockSparseAttention
from keras_deepseek.layers.attention.sparse.native_sparse_attention import NativeSparseAttention
from keras_deepseek.layers.feed_forward.swiglu import SwiGLU
from keras_deepseek.layers.heads.chunked_cross_entropy import ChunkedCrossEntropy
from keras_deepseek.layers.heads.masked_position_head import MaskedPositionHead
from keras_deepseek.layers.heads.multi_token_prediction import MultiTokenPrediction
from keras_deepseek.layers.heads.sampled_softmax import SampledSoftmax
from keras_deepseek.layers.moe.deepseek_moe import DeepSeekMoE
from keras_deepseek.layers.moe.expert_router import ExpertRouter
from keras_deepseek.layers.moe.hash_router import HashRouter
from keras_deepseek.layers.position.rotary_embedding import RotaryEmbedding
from keras_deepseek.layers.residual.manifold_constrained_hyper_connections import (
    ManifoldConstrainedHyperConnections,
)
from keras_deepseek.layers.residual.residual_stream_collapse import ResidualStreamCollapse
from keras_deepseek.layers.residual.residual_stream_expansion import ResidualStreamExpansion

if TYPE_CHECKING:
    from keras.layers import *  # noqa: F403

__all__ = [
    "BlockSparseAttention",
    "CachedAttention",
    "ChunkedCrossEntropy",
    "CompressedSparseAttention",
    "DeepSeekMoE",
    "DeepSeekSparseAttention",
    "ExpertRouter",
    "GroupedQueryAttention",
    "HashRouter",
    "HeavilyCompressedAttention",
    "LayerNorm",
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

LayerNorm = keras.layers.LayerNormalization
SparseAttention = BlockSparseAttention


def _is_public(name: str) -> bool:
    value = getattr(keras.layers, name, None)
    return not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))


__all__ += [name for name in dir(keras.layers) if _is_public(name)]
__all__.sort()


def __getattr__(name: str) -> Any:
    if not _is_public(name):
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}, nor has keras.layers of the "
            f"installed Keras {keras.__version__}"
        )
    return getattr(keras.layers, name)


def __dir__() -> list[str]:
    return sorted(__all__)
