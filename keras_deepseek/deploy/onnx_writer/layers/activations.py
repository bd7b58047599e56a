"""Activations that a trace can't open, and layers that have them, such as convolutions."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import (
    SYMBOLIC_ACTIVATIONS,
    handles_keras_layer,
    put_function,
)
from keras_deepseek.deploy.onnx_writer.table.neural import (
    check_float,
    convolve_dense,
    kernel_name,
    spatial,
)
from keras_deepseek.deploy.onnx_writer.table.normalizations import softmax_of
from keras_deepseek.deploy.onnx_writer.table.shapes import axes_of
from keras_deepseek.deploy.onnx_writer.writer import Writer
from keras_deepseek.graph.ir import Node, Spec, Value, constant_of


def _put_activated(
    writer: Writer, node: Node, names: dict[str, str], function: Callable[..., Any] | None
) -> None:
    """Puts an activation of a tensor, whose names are by layout, as a layer's output."""
    if function is None or function is keras.activations.linear:
        for layout, name in names.items():
            writer.put(Value(node), name, layout)
        return
    put_function(writer, node, SYMBOLIC_ACTIVATIONS.get(function, function), node.spec, names)


@handles_keras_layer("Activation")
def activation(writer: Writer, node: Node, x: Value) -> None:
    """Writes an activation that a trace can't open."""
    names = {
        layout: writer.cast(writer.name(x, layout), x.dtype, node.spec.dtype)
        for layout in list(writer.layouts(x))
    }
    _put_activated(writer, node, names, node.operation.activation)


@handles_keras_layer(
    "Dense",
    "EinsumDense",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
)
def activated_layer(writer: Writer, node: Node, x: Value, **_: Any) -> None:
    """Writes a layer that a trace can't open because of its activation, or a regularizer of it."""
    layer = node.operation
    with own_attributes(layer, activity_regularizer=None):
        names = {layout: writer.name(x, layout) for layout in list(writer.layouts(x))}
        put_function(writer, node, None, Spec(x.shape, x.dtype), names)


def _constant(tensor: Any) -> Value:
    return constant_of(keras.ops.convert_to_tensor(tensor))  # A variable, or a kernel and its LoRA.


@handles_keras_layer("Conv1D", "Conv2D", "Conv3D")
def _conv(writer: Writer, node: Node, x: Value) -> None:
    layer = node.operation
    bias = _constant(layer.bias) if layer.use_bias else None
    name, layout = convolve_dense(writer, node, x, _constant(layer.kernel), bias)
    _put_activated(writer, node, {layout: name}, layer.activation)


@handles_keras_layer("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def _transposed_conv(writer: Writer, node: Node, x: Value) -> None:
    layer, dtype, kernel = node.operation, node.spec.dtype, _constant(node.operation.kernel)
    bias = writer.tensor(_constant(layer.bias), dtype) if layer.use_bias else None
    images, _, _, layout = spatial(writer, x, layer.data_format)
    check_float(dtype, "a transposed convolution")
    window, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    extra = layer.output_padding or (None,) * len(window)
    crops = [
        _crop(*axis, layer.padding) for axis in zip(window, strides, dilation, extra, strict=True)
    ]
    name = writer.add(
        "ConvTranspose",
        images.cast(dtype).name,
        kernel_name(writer, kernel, dtype),
        bias,
        kernel_shape=list(window),
        strides=list(strides),
        dilations=list(dilation),
        pads=[*(before for before, _ in crops), *(max(after, 0) for _, after in crops)],
        output_padding=[max(-after, 0) for _, after in crops],
    )
    _put_activated(writer, node, {layout: name}, layer.activation)


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


@handles_keras_layer("Softmax", follows="JAX and PyTorch: NaN beside infinity")
def masked_softmax(
    writer: Writer, node: Node, x: Value, mask: Value | None = None, **_: Any
) -> str:
    """Writes a softmax with a mask: zero where all of an axis is hidden."""
    dtype = node.spec.dtype
    axes = axes_of(node.operation.axis, len(x.shape))
    name = writer.tensor(x, dtype)
    if mask is None:
        return softmax_of(writer, "Softmax", name, axes)
    is_visible = writer.tensor(mask)
    if mask.dtype != "bool":
        is_visible = writer.add("Greater", is_visible, writer.tensor(0.5, mask.dtype))
    low = writer.tensor(-3e4 if dtype == "float16" else -1e9, dtype)
    scores = writer.add("Where", is_visible, name, low)
    weights = softmax_of(writer, "Softmax", scores, axes)
    return writer.add("Where", is_visible, weights, writer.tensor(0, dtype))
