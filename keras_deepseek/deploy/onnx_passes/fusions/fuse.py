"""The fusion passes in the order in which they run."""

from typing import Any

from keras_deepseek.deploy.onnx_passes.fusions.add_masks import add_masks
from keras_deepseek.deploy.onnx_passes.fusions.drop_casts import drop_casts
from keras_deepseek.deploy.onnx_passes.fusions.drop_expands import drop_expands
from keras_deepseek.deploy.onnx_passes.fusions.drop_flattening import drop_flattening
from keras_deepseek.deploy.onnx_passes.fusions.einsum_to_matmul import einsum_to_matmul
from keras_deepseek.deploy.onnx_passes.fusions.fold_scales import fold_scales
from keras_deepseek.deploy.onnx_passes.fusions.fuse_attention import fuse_attention
from keras_deepseek.deploy.onnx_passes.fusions.fuse_gelu import fuse_gelu
from keras_deepseek.deploy.onnx_passes.fusions.fuse_layer_normalization import (
    fuse_layer_normalization,
)
from keras_deepseek.deploy.onnx_passes.fusions.fuse_rms_normalization import fuse_rms_normalization
from keras_deepseek.deploy.onnx_passes.fusions.keep_reduced_axes import keep_reduced_axes
from keras_deepseek.deploy.onnx_passes.fusions.simplify_negative_indices import (
    simplify_negative_indices,
)
from keras_deepseek.deploy.onnx_passes.fusions.simplify_sizes import simplify_sizes
from keras_deepseek.deploy.onnx_passes.fusions.sizes_from_factors import sizes_from_factors
from keras_deepseek.deploy.onnx_passes.fusions.transpose_products import transpose_products
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView

_PASSES = (
    einsum_to_matmul,
    drop_flattening,
    transpose_products,
    sizes_from_factors,
    add_masks,
    keep_reduced_axes,
    fuse_layer_normalization,
    fuse_rms_normalization,
    fuse_gelu,
    fuse_attention,
    simplify_negative_indices,
    drop_expands,
    fold_scales,
    drop_casts,
    simplify_sizes,
)


def fuse(model: Any) -> None:
    """Runs all fusion passes on a graph, in place, and removes nodes without effect."""
    view = GraphView(model)
    for fusion in _PASSES:
        fusion(view)
