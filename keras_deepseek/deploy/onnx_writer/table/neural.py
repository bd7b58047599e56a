"""Convolutions and pooling as ONNX nodes.

ONNX has the channels first. The result of a convolution keeps that layout until an operation needs
that of Keras.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.table.operand import Operand
from keras_deepseek.deploy.onnx_writer.writer import (
    FIRST,
    LAST,
    NoEntryError,
    Writer,
    handles,
    numpy_dtype,
)
from keras_deepseek.graph.ir import Node, Value

_FLOATS = ("float32", "float16", "bfloat16")
_MOST_AXES = 3


def as_tuple(sizes: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Returns one size for each spatial axis."""
    return (sizes,) * rank if isinstance(sizes, int) else tuple(sizes)


def spatial(
    writer: Writer, x: Value, data_format: str | None
) -> tuple[Operand, Sequence[int], int, str]:
    """Returns images with the channels first, their sizes, their channels and the layout.

    The layout is the one in which a tensor with the channels first is the value.
    """
    if not 0 < len(x.shape) - 2 <= _MOST_AXES:
        raise NoEntryError(f"images of {len(x.shape) - 2} axes")
    if (data_format or keras.config.image_data_format()) == "channels_first":
        return Operand(writer, writer.name(x), x.dtype), x.shape[2:], x.shape[1], LAST
    return Operand(writer, writer.name(x, FIRST), x.dtype), x.shape[1:-1], x.shape[-1], FIRST


def same_padding(
    writer: Writer,
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> dict[str, Any]:
    """Returns the attributes of "same" padding, of which the larger half comes after."""
    before, after = [], []
    for size, width, stride, rate in zip(sizes, window, strides, dilation, strict=True):
        reach = (width - 1) * rate + 1
        if stride == 1:
            total = reach - 1
        elif writer.is_free(size):
            if stride > width or any(step != 1 for step in dilation):
                raise NoEntryError("strides beyond the window, or with dilation, on a free axis")
            return {"auto_pad": "SAME_UPPER"}
        else:
            total = max(reach - 1 - (int(size) - 1) % stride, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return {"pads": [*before, *after]} if any(before + after) else {}


def convolve(
    writer: Writer,
    node: Node,
    x: Value,
    kernel: str,
    window: Sequence[int],
    groups: int = 1,
    bias: Value | None = None,
) -> tuple[str, str]:
    """Adds a convolution with the strides and so on of a node; returns its name and layout.

    `kernel` is the name of a kernel in ONNX's order.
    """
    operation, dtype = node.operation, node.spec.dtype
    bias_name = None if bias is None else writer.tensor(bias, dtype)
    images, sizes, _, layout = spatial(writer, x, operation.data_format)
    check_float(dtype, f"{node.kind}: a convolution")
    strides = as_tuple(operation.strides or window, len(sizes))
    dilation = as_tuple(operation.dilation_rate, len(sizes))
    pads = {}
    if operation.padding == "same":
        pads = same_padding(writer, sizes, window, strides, dilation)
    elif operation.padding == "causal":
        pads = {"pads": [(window[0] - 1) * dilation[0], 0]}
    result = writer.add(
        "Conv",
        images.cast(dtype).name,
        kernel,
        bias_name,
        kernel_shape=list(window),
        strides=list(strides),
        dilations=list(dilation),
        group=groups,
        **pads,
    )
    return result, layout


def check_float(dtype: str, what: str) -> None:
    """Raises a `NoEntryError` for a dtype in which ONNX Runtime has no convolutions."""
    if dtype not in _FLOATS:
        raise NoEntryError(f"{what} of {dtype}, which ONNX Runtime does not compute")


def kernel_name(
    writer: Writer,
    kernel: Value,
    dtype: str,
    order: Sequence[int] = (),
    shape: Sequence[int] | None = None,
) -> str:
    """Returns the name of a kernel whose axes were arranged, and then reshaped.

    The order of the axes is by default that of ONNX: outputs, inputs, window.
    """
    rank = len(kernel.shape) - 2
    order = order or [rank + 1, rank, *range(rank)]
    array = writer.array(kernel)
    if array is not None:
        array = array.astype(numpy_dtype(dtype)).transpose(order)
        return writer.constant(array if shape is None else array.reshape(shape))
    name = writer.transpose(writer.tensor(kernel, dtype), order)
    if shape is not None:
        name = writer.add("Reshape", name, writer.integers(*shape))
    return name


def convolve_dense(
    writer: Writer, node: Node, x: Value, kernel: Value, bias: Value | None = None
) -> tuple[str, str]:
    """Adds a convolution; fewer inputs of the kernel than channels make groups."""
    *window, inputs, _ = kernel.shape
    _, _, channels, _ = spatial(writer, x, node.operation.data_format)
    name = kernel_name(writer, kernel, node.spec.dtype)
    return convolve(writer, node, x, name, window, int(channels) // inputs, bias)


@handles("Conv")
def _conv(writer: Writer, node: Node, x: Value, kernel: Value) -> None:
    writer.put(Value(node), *convolve_dense(writer, node, x, kernel))


def _depthwise(writer: Writer, node: Node, x: Value, kernel: Value) -> tuple[str, str]:
    *window, channels, multiplier = kernel.shape
    rank = len(window)
    order = [rank, rank + 1, *range(rank)]
    shape = [channels * multiplier, 1, *window]
    name = kernel_name(writer, kernel, node.spec.dtype, order, shape)
    return convolve(writer, node, x, name, window, channels)


@handles("DepthwiseConv")
def _depthwise_conv(writer: Writer, node: Node, x: Value, kernel: Value) -> None:
    writer.put(Value(node), *_depthwise(writer, node, x, kernel))


@handles("SeparableConv")
def _separable_conv(
    writer: Writer, node: Node, x: Value, depthwise_kernel: Value, pointwise_kernel: Value
) -> None:
    result, layout = _depthwise(writer, node, x, depthwise_kernel)
    point = kernel_name(writer, pointwise_kernel, node.spec.dtype)
    result = writer.add("Conv", result, point, kernel_shape=[1] * (len(x.shape) - 2))
    writer.put(Value(node), result, layout)


@handles(
    "MaxPool",
    "AveragePool",
    follows={
        "AveragePool": "JAX and TensorFlow: padding is not counted",
        "MaxPool": "no backend, for NaN and windows of -infinity",
    },
)
def _pool_windows(writer: Writer, node: Node, x: Value) -> None:
    """Writes pooling. Of -infinity alone ONNX Runtime's largest number is the lowest finite one."""
    operation = node.operation
    images, sizes, _, layout = spatial(writer, x, operation.data_format)
    rank = len(sizes)
    window = as_tuple(operation.pool_size, rank)
    strides = window if operation.strides is None else as_tuple(operation.strides, rank)
    pads = {}
    if operation.padding == "same":
        pads = same_padding(writer, sizes, window, strides, (1,) * rank)
    pooled = _pool(images, node.kind, window, strides=list(strides), **pads)
    writer.put(Value(node), pooled.name, layout)


def _pool(images: Operand, kind: str, window: Sequence[int], **attributes: Any) -> Operand:
    compute = dtype = images.dtype
    if kind == "AveragePool":
        check_float(dtype, "an average")
        attributes["count_include_pad"] = 0
    elif dtype in ("int16", "int32", "uint16", "uint32"):
        compute = "float64"
    elif ("64" in dtype and dtype != "float64") or dtype == "bool":
        raise NoEntryError(f"MaxPool of {dtype}")
    pooled = images.cast(compute).apply(kind, kernel_shape=list(window), **attributes)
    return pooled.cast(dtype)


@handles(
    "AdaptiveMaxPool",
    "AdaptiveAveragePool",
    follows={"AdaptiveMaxPool": "no backend, for NaN and windows of -infinity"},
)
def _adaptive_pool(writer: Writer, node: Node, x: Value) -> None:
    """Writes pooling to fixed sizes, of windows that may overlap, along one axis at a time."""
    kind = node.kind.removeprefix("Adaptive")
    images, sizes, _, layout = spatial(writer, x, node.operation.data_format)
    if any(writer.is_free(size) for size in sizes):
        raise NoEntryError("adaptive pooling of a free axis")
    if len(node.spec.shape) != len(x.shape):  # Keras 3.15, with the channels last.
        raise NoEntryError("adaptive pooling whose shape Keras does not know")
    counts = as_tuple(node.operation.output_size, len(sizes))
    if not any(size % count for size, count in zip(sizes, counts, strict=True)):
        window = [int(size) // count for size, count in zip(sizes, counts, strict=True)]
        images = _pool(images, kind, window, strides=window)
    else:
        for axis, count in enumerate(counts):
            images = _pool_axis(images, kind, axis, [*map(int, sizes)], count)
    writer.put(Value(node), images.name, layout)


def _pool_axis(images: Operand, kind: str, axis: int, sizes: Sequence[int], count: int) -> Operand:
    """Pools one axis: all windows of each width, of which some are taken."""
    size = sizes[axis]
    starts = np.arange(count) * size // count
    widths = -(-np.arange(1, count + 1) * size // count) - starts
    parts, positions, length = [], np.zeros(count, "int64"), 0
    for width in np.unique(widths).tolist():
        window = [width if axis == other else 1 for other in range(len(sizes))]
        parts.append(_pool(images, kind, window))
        positions = np.where(widths == width, starts + length, positions)
        length += size - width + 1
    pooled = parts[0] if len(parts) == 1 else parts[0].apply("Concat", *parts[1:], axis=axis + 2)
    return pooled.apply("Gather", images.writer.constant(positions, "int64"), axis=axis + 2)
