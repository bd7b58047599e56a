"""Fusion passes, which replace several ONNX operators by fewer.

A pass changes the graph of a `GraphView`, and returns the number of its replacements.

They do not use onnxscript's rewriter (tried with 0.7, for GELU). Its constants match only tensors
without axes, with one tolerance for all dtypes; the commuted forms of GELU are 1,920 rules, which
take 5 s on ten nodes; and patterns cannot express chains of free length or checks of sizes.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.fusions.attention import add_masks, fuse_attention
from keras_deepseek.deploy.onnx_passes.fusions.fuse_gelu import fuse_gelu
from keras_deepseek.deploy.onnx_passes.fusions.normalizations import (
    fuse_layer_normalization,
    fuse_rms_normalization,
)
from keras_deepseek.deploy.onnx_passes.fusions.products import (
    drop_flattening,
    einsum_to_matmul,
    fold_scales,
    transpose_products,
)
from keras_deepseek.deploy.onnx_passes.fusions.redundant_nodes import (
    drop_casts,
    keep_reduced_axes,
    simplify_negative_indices,
)
from keras_deepseek.deploy.onnx_passes.fusions.sizes import (
    drop_expands,
    simplify_sizes,
    sizes_from_factors,
)
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
