"""Goes through the passes that write several operators as one or as fewer, in their order."""

from typing import Any

from keras_deepseek.deploy.onnx_passes.fusions.add_masks import add_masks
from keras_deepseek.deploy.onnx_passes.fusions.drop_expands import drop_expands
from keras_deepseek.deploy.onnx_passes.fusions.einsum_to_matmul import einsum_to_matmul
from keras_deepseek.deploy.onnx_passes.fusions.fuse_attention import fuse_attention
from keras_deepseek.deploy.onnx_passes.fusions.fuse_gelu import fuse_gelu
from keras_deepseek.deploy.onnx_passes.fusions.fuse_layer_normalization import (
    fuse_layer_normalization,
)
from keras_deepseek.deploy.onnx_passes.fusions.fuse_rms_normalization import fuse_rms_normalization
from keras_deepseek.deploy.onnx_passes.fusions.keep_reduced_axes import keep_reduced_axes
from keras_deepseek.deploy.onnx_passes.fusions.negative_places import negative_places
from keras_deepseek.deploy.onnx_passes.fusions.plain_casts import plain_casts
from keras_deepseek.deploy.onnx_passes.fusions.plain_products import plain_products
from keras_deepseek.deploy.onnx_passes.fusions.plain_sizes import plain_sizes
from keras_deepseek.deploy.onnx_passes.fusions.scales_into_kernels import scales_into_kernels
from keras_deepseek.deploy.onnx_passes.fusions.sizes_of_factors import sizes_of_factors
from keras_deepseek.deploy.onnx_passes.fusions.turn_products import turn_products
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView

_PASSES = (
    einsum_to_matmul,
    plain_products,
    turn_products,
    sizes_of_factors,
    add_masks,
    keep_reduced_axes,
    fuse_layer_normalization,
    fuse_rms_normalization,
    fuse_gelu,
    fuse_attention,
    negative_places,
    drop_expands,
    scales_into_kernels,
    plain_casts,
    plain_sizes,
)


def fuse(model: Any) -> None:
    """Writes what ONNX has one operator for as that operator, and leaves out what does nothing.

    Args:
        model: `onnx.ModelProto`, changed in place.
    """
    view = GraphView(model)
    for each in _PASSES:
        each(view)
