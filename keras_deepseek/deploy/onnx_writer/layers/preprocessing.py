"""Preprocessing layers, which call the framework, as ONNX nodes."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import handles_keras_layer
from keras_deepseek.deploy.onnx_writer.table.elementwise import elementwise
from keras_deepseek.deploy.onnx_writer.table.images import image_axes, resize_to
from keras_deepseek.deploy.onnx_writer.table.operand import Operand, as_operand
from keras_deepseek.deploy.onnx_writer.table.shapes import slice_axes
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, numpy_dtype
from keras_deepseek.graph.ir import Node, Value

_IMAGE_RANK, _MOST_ENCODED_AXES = 4, 2


@handles_keras_layer("Rescaling")
def _rescaling(writer: Writer, node: Node, x: Value) -> None:
    """Writes `x scale + offset`."""
    layer, dtype = node.operation, numpy_dtype(node.spec.dtype)
    scale, offset = np.asarray(layer.scale, dtype), np.asarray(layer.offset, dtype)
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        scale = scale.reshape(scale.shape + (1,) * (3 - scale.ndim))
    elementwise(writer, node, [x, scale, offset], lambda x, scale, offset: x * scale + offset)


@handles_keras_layer("Normalization")
def _normalization(writer: Writer, node: Node, x: Value) -> None:
    """Writes `(x - mean) / deviation`, or its inverse."""
    layer, dtype = node.operation, numpy_dtype(node.spec.dtype)
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(statistic)).astype(dtype)
        for statistic in (layer.mean, layer.variance)
    )
    deviation = np.maximum(np.sqrt(variance), np.asarray(keras.config.epsilon(), dtype))

    def formula(x: Operand, mean: Operand, deviation: Operand) -> Operand:
        return mean + x * deviation if layer.invert else (x - mean) / deviation

    elementwise(writer, node, [x, mean, deviation], formula)


@handles_keras_layer("Resizing", follows="PyTorch, for NaN")
def _resizing(writer: Writer, node: Node, x: Value, **_: Any) -> None:
    """Writes a resizing of images of floats."""
    layer = node.operation
    if layer.antialias or layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        raise NoEntryError("Resizing with antialias or an aspect ratio")
    if len(x.shape) != _IMAGE_RANK or "float" not in x.dtype:
        raise NoEntryError("Resizing of integers, or of one image")
    resize_to(writer, node, x, (layer.height, layer.width))


@handles_keras_layer("CenterCrop")
def _center_crop(writer: Writer, node: Node, x: Value, **_: Any) -> str:
    """Writes the crop of images that are at least as large."""
    layer = node.operation
    name = writer.cast(writer.name(x), x.dtype, node.spec.dtype)
    for axis, length in zip(image_axes(node, x), (layer.height, layer.width), strict=False):
        size = x.shape[axis]
        if writer.is_free(size) or size < length:
            raise NoEntryError("CenterCrop of images that may be smaller")
        start = (int(size) - length) // 2
        name = slice_axes(writer, name, {axis: slice(start, start + length)})
    return name


@handles_keras_layer("Discretization")
def _discretization(writer: Writer, node: Node, x: Value) -> str:
    """Writes the number of boundaries that are not above a number; NaN lies above all."""
    boundaries = np.asarray(node.operation.bin_boundaries, "float32")
    column = as_operand(writer, x, "float64" if x.dtype == "float64" else "float32").unsqueeze(-1)
    passed = (~(column < boundaries)).cast("int64")
    indices = passed.reduce("ReduceSum", [len(x.shape)])
    return _encode(node, indices, x.shape, len(boundaries) + 1)


@handles_keras_layer("CategoryEncoding")
def _category_encoding(
    writer: Writer, node: Node, x: Value, count_weights: Value | None = None
) -> str:
    """Writes an encoding of integers; what is no category counts nowhere."""
    indices = as_operand(writer, x, "int64")
    return _encode(node, indices, x.shape, node.operation.num_tokens, count_weights)


def _encode(
    node: Node, indices: Operand, shape: tuple[int, ...], depth: int, weights: Value | None = None
) -> str:
    """Encodes integers as a layer's `output_mode` says."""
    layer, dtype, writer = node.operation, node.spec.dtype, indices.writer
    mode, rank = layer.output_mode, len(shape)
    if layer.sparse:
        raise NoEntryError("a sparse encoding")
    if mode == "int":
        return indices.cast(dtype).name
    if mode == "one_hot":
        if rank > 1 and shape[-1] == 1 and not writer.is_free(shape[-1]):
            indices = indices.apply("Squeeze", writer.integers(-1))
    elif rank > _MOST_ENCODED_AXES:
        raise NoEntryError(f"a {mode} encoding of {rank} axes")
    classes = indices.like(np.arange(depth))
    encoded = indices.unsqueeze(-1).equals(classes).cast(dtype)
    if mode == "one_hot":
        return encoded.name
    if weights is not None:
        encoded = encoded * as_operand(writer, weights, dtype).unsqueeze(-1)
    return encoded.reduce("ReduceMax" if mode == "multi_hot" else "ReduceSum", [rank - 1]).name
