"""Convolution layers that a trace keeps whole."""

from typing import Any

import keras

from keras_deepseek.deploy.onnx_writer.layers.activations import put_activated
from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import handles_keras_layer
from keras_deepseek.deploy.onnx_writer.table.neural import (
    check_float,
    convolve_dense,
    kernel_name,
    spatial,
)
from keras_deepseek.deploy.onnx_writer.writer import Writer
from keras_deepseek.graph.ir import CONSTANT, Node, Spec, Value


def _constant(tensor: Any) -> Value:
    tensor = keras.ops.convert_to_tensor(tensor)  # A variable, or a kernel and its LoRA.
    spec = Spec(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype))
    return Value(Node(CONSTANT, [spec], content=tensor))


@handles_keras_layer("Conv1D", "Conv2D", "Conv3D")
def _conv(writer: Writer, node: Node, x: Value) -> None:
    layer = node.operation
    bias = _constant(layer.bias) if layer.use_bias else None
    name, layout = convolve_dense(writer, node, x, _constant(layer.kernel), bias)
    put_activated(writer, node, {layout: name}, layer.activation)


@handles_keras_layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed_conv(writer: Writer, node: Node, x: Value) -> None:
    layer, dtype, kernel = node.operation, node.spec.dtype, _constant(node.operation.kernel)
    bias = writer.tensor(_constant(layer.bias), dtype) if layer.use_bias else None
    source, _, _, layout = spatial(writer, x, layer.data_format)
    check_float(dtype, "a transposed convolution")
    window, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    extra = layer.output_padding or (None,) * len(window)
    crops = [
        _crop(*axis, layer.padding) for axis in zip(window, strides, dilation, extra, strict=True)
    ]
    name = writer.add(
        "ConvTranspose",
        writer.cast(source, x.dtype, dtype),
        kernel_name(writer, kernel, dtype),
        bias,
        kernel_shape=list(window),
        strides=list(strides),
        dilations=list(dilation),
        pads=[*(before for before, _ in crops), *(max(after, 0) for _, after in crops)],
        output_padding=[max(-after, 0) for _, after in crops],
    )
    put_activated(writer, node, {layout: name}, layer.activation)


def _crop(
    width: int, stride: int, rate: int, output_padding: int | None, padding: str
) -> tuple[int, int]:
    """Returns how much of a full transposed convolution Keras cuts off before and after.

    Where the second is negative Keras appends zeros.
    """
    reach = (width - 1) * rate + 1
    if padding == "valid":
        return 0, -(max(stride - reach, 0) if output_padding is None else output_padding)
    total = reach - stride if output_padding is None else reach - reach % 2 - output_padding
    padded = 2 * (reach - 1) - total  # In the convolution of the input with zeros between.
    before = reach - 1 - min((padded + 1) // 2, reach - 1)
    return before, total - before
