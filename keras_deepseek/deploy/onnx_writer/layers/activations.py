"""Activations that a trace can't open, and layers that have them."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.deploy.onnx_writer.layers.inner_graphs import (
    SYMBOLIC_ACTIVATIONS,
    handles_keras_layer,
    put_function,
)
from keras_deepseek.deploy.onnx_writer.table.normalizations import softmax_of
from keras_deepseek.deploy.onnx_writer.table.shapes import axes_of
from keras_deepseek.deploy.onnx_writer.writer import Writer
from keras_deepseek.graph.ir import Node, Spec, Value


def put_activated(
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
    put_activated(writer, node, names, node.operation.activation)


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
