"""Preprocessing layers, which call the framework, as ONNX nodes."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import handles_keras_layer
from keras_deepseek.deploy.onnx_writer.table.elementwise import elementwise
from keras_deepseek.deploy.onnx_writer.table.images import resize_to
from keras_deepseek.deploy.onnx_writer.table.shapes import slice_axes
from keras_deepseek.deploy.onnx_writer.writer import (
    NoEntryError,
    Writer,
    numpy_dtype,
)
from keras_deepseek.graph.ir import Node, Value

_IMAGE_RANK, _MOST_ENCODED_AXES = 4, 2


@handles_keras_layer("Rescaling")
def rescaling(writer: Writer, node: Node, x: Value) -> None:
    """Writes `x scale + offset`."""
    layer, dtype = node.operation, numpy_dtype(node.spec.dtype)
    scale, offset = np.asarray(layer.scale, dtype), np.asarray(layer.offset, dtype)
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        scale = scale.reshape(scale.shape + (1,) * (3 - scale.ndim))
    elementwise(
        writer,
        node,
        [x, scale, offset],
        lambda a, b, c: writer.add("Add", writer.add("Mul", a, b), c),
    )


@handles_keras_layer("Normalization")
def normalization(writer: Writer, node: Node, x: Value) -> None:
    """Writes `(x - mean) / deviation`, or its inverse."""
    layer, dtype = node.operation, numpy_dtype(node.spec.dtype)
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(statistic)).astype(dtype)
        for statistic in (layer.mean, layer.variance)
    )
    deviation = np.maximum(np.sqrt(variance), np.asarray(keras.config.epsilon(), dtype))

    def build(value: str, center: str, width: str) -> str:
        if layer.invert:
            return writer.add("Add", center, writer.add("Mul", value, width))
        return writer.add("Div", writer.add("Sub", value, center), width)

    elementwise(writer, node, [x, mean, deviation], build)


@handles_keras_layer("Resizing", follows="PyTorch, for NaN")
def resizing(writer: Writer, node: Node, x: Value, **_: Any) -> None:
    """Writes a resizing of images of floats."""
    layer = node.operation
    if layer.antialias or layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        raise NoEntryError("Resizing with antialias or an aspect ratio")
    if len(x.shape) != _IMAGE_RANK or "float" not in x.dtype:
        raise NoEntryError("Resizing of integers, or of one image")
    resize_to(writer, node, x, (layer.height, layer.width))


@handles_keras_layer("CenterCrop")
def center_crop(writer: Writer, node: Node, x: Value, **_: Any) -> str:
    """Writes the crop of images that are at least as large."""
    layer, rank = node.operation, len(x.shape)
    axes = (rank - 2, rank - 1) if layer.data_format == "channels_first" else (rank - 3, rank - 2)
    name = writer.cast(writer.name(x), x.dtype, node.spec.dtype)
    for axis, length in zip(axes, (layer.height, layer.width), strict=True):
        size = x.shape[axis]
        if writer.is_free(size) or size < length:
            raise NoEntryError("CenterCrop of images that may be smaller")
        start = (int(size) - length) // 2
        name = slice_axes(writer, name, {axis: slice(start, start + length)})
    return name


@handles_keras_layer("Discretization")
def discretization(writer: Writer, node: Node, x: Value) -> str:
    """Writes the number of boundaries that are not above a number; NaN lies above all."""
    layer = node.operation
    dtype = "float64" if x.dtype == "float64" else "float32"
    boundaries = np.asarray(layer.bin_boundaries, "float32")
    column = writer.add("Unsqueeze", writer.tensor(x, dtype), writer.integers(-1))
    is_below = writer.add("Less", column, writer.constant(boundaries, dtype))
    passed = writer.cast(writer.add("Not", is_below), "bool", "int64")
    indices = writer.reduce("ReduceSum", passed, [len(x.shape)], keepdims=False)
    depth = len(layer.bin_boundaries) + 1
    return _encode(writer, node, indices, x.shape, depth)


@handles_keras_layer("CategoryEncoding")
def category_encoding(
    writer: Writer, node: Node, x: Value, count_weights: Value | None = None
) -> str:
    """Writes an encoding of integers; what is no category counts nowhere."""
    indices = writer.tensor(x, "int64")
    return _encode(writer, node, indices, x.shape, node.operation.num_tokens, count_weights)


def _encode(
    writer: Writer,
    node: Node,
    indices: str,
    shape: tuple[int, ...],
    depth: int,
    weights: Value | None = None,
) -> str:
    """Encodes integers as a layer's `output_mode` says."""
    layer, dtype = node.operation, node.spec.dtype
    mode, rank = layer.output_mode, len(shape)
    if layer.sparse:
        raise NoEntryError("a sparse encoding")
    if mode == "int":
        return writer.cast(indices, "int64", dtype)
    if mode == "one_hot":
        if rank > 1 and shape[-1] == 1 and not writer.is_free(shape[-1]):
            indices = writer.add("Squeeze", indices, writer.integers(-1))
    elif rank > _MOST_ENCODED_AXES:
        raise NoEntryError(f"a {mode} encoding of {rank} axes")
    classes = writer.constant(np.arange(depth, dtype="int64"))
    column = writer.add("Unsqueeze", indices, writer.integers(-1))
    encoded = writer.cast(writer.add("Equal", column, classes), "bool", dtype)
    if mode == "one_hot":
        return encoded
    if weights is not None:
        factors = writer.add("Unsqueeze", writer.tensor(weights, dtype), writer.integers(-1))
        encoded = writer.add("Mul", encoded, factors)
    kind = "ReduceMax" if mode == "multi_hot" else "ReduceSum"
    return writer.reduce(kind, encoded, [rank - 1], keepdims=False)
