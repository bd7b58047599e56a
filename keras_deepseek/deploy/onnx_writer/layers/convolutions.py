"""Convolution layers that a trace keeps whole."""

from typing import Any

import keras

from keras_deepseek.deploy.onnx_writer.layers.activations import put_activated
from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import handles_keras_layer
from keras_deepseek.deploy.onnx_writer.table.neural import (
    conv_transpose,
    convolve,
    kernel_name,
    onnx_order,
)
from keras_deepseek.deploy.onnx_writer.writer import Writer
from keras_deepseek.graph.ir import CONSTANT, Node, Spec, Value


def _constant(tensor: Any) -> Value:
    tensor = keras.ops.convert_to_tensor(tensor)  # A variable, or a kernel and its LoRA.
    spec = Spec(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype))
    return Value(Node(CONSTANT, [spec], content=tensor))


def _bias(writer: Writer, layer: keras.Layer, dtype: str) -> str | None:
    return writer.tensor(_constant(layer.bias), dtype) if layer.use_bias else None


@handles_keras_layer("Conv1D", "Conv2D", "Conv3D")
def conv(writer: Writer, node: Node, x: Value) -> None:
    """Writes a convolution, also of groups."""
    layer, dtype, rank = node.operation, node.spec.dtype, len(x.shape) - 2
    kernel = _constant(layer.kernel)
    name, layout = convolve(
        writer,
        node,
        x,
        (kernel_name(writer, kernel, dtype, onnx_order(rank)), kernel.shape[:rank]),
        layer.groups,
        dtype,
        _bias(writer, layer, dtype),
    )
    put_activated(writer, node, {layout: name}, layer.activation)


@handles_keras_layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def transposed_conv(writer: Writer, node: Node, x: Value) -> None:
    """Writes a transposed convolution."""
    layer, dtype = node.operation, node.spec.dtype
    name, layout = conv_transpose(
        writer,
        x,
        _constant(layer.kernel),
        layer.strides,
        layer.padding,
        layer.output_padding,
        layer.data_format,
        layer.dilation_rate,
        dtype,
        _bias(writer, layer, dtype),
    )
    put_activated(writer, node, {layout: name}, layer.activation)
