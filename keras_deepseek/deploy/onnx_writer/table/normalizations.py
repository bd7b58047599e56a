"""Softmax and normalizations as ONNX nodes."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.table.indices import axes_of
from keras_deepseek.deploy.onnx_writer.writer import (
    FIRST,
    LAST,
    OPERATOR_OPSETS,
    NoEntryError,
    Writer,
    handles,
    numpy_dtype,
)
from keras_deepseek.graph.ir import Node, Value


@handles("Softmax", "LogSoftmax", follows={"Softmax": "JAX and PyTorch: NaN beside infinity"})
def softmax(writer: Writer, node: Node, x: Value) -> str:
    """Writes `keras.ops.softmax` and `log_softmax`, of one axis or several."""
    axes = axes_of(node.operation.axis, len(x.shape))
    return softmax_of(writer, node.kind, writer.tensor(x, node.spec.dtype), axes)


def softmax_of(writer: Writer, kind: str, name: str, axes: list[int]) -> str:
    """Adds a `Softmax` or `LogSoftmax`; ONNX has them for a single axis."""
    if len(axes) == 1:
        return writer.add(kind, name, axis=axes[0])
    name = writer.add("Sub", name, writer.reduce("ReduceLogSumExp", name, axes, keepdims=True))
    return writer.add("Exp", name) if kind == "Softmax" else name


@handles("Sparsemax", follows="PyTorch and TensorFlow, for NaN")
def sparsemax(writer: Writer, node: Node, x: Value) -> str:
    """Writes `keras.ops.sparsemax`: what exceeds a threshold at which the sum is 1."""
    dtype, rank = node.spec.dtype, len(x.shape)
    (axis,) = axes_of(node.operation.axis, rank)
    compute = dtype if dtype == "float64" else "float32"
    name, one = writer.tensor(x, compute), writer.tensor(1, compute)
    size = writer.size(writer.axis_size(x, axis))
    ordered, _ = writer.add_several("TopK", name, size, axis=axis, outputs=2)
    sums = writer.add("CumSum", ordered, writer.constant(np.int64(axis)))
    end = writer.add("Squeeze", writer.cast(size, "int64", compute), writer.integers(0))
    counts = writer.add("Range", one, writer.add("Add", end, one), one)
    counts = writer.add("Reshape", counts, writer.integers(-1, *[1] * (rank - 1 - axis)))
    bounds = writer.add("Div", writer.add("Sub", sums, one), counts)
    is_support = writer.add("Greater", ordered, bounds)
    zero = writer.tensor(0, compute)
    total = writer.reduce(
        "ReduceSum", writer.add("Where", is_support, sums, zero), [axis], keepdims=True
    )
    count = writer.reduce(
        "ReduceSum", writer.cast(is_support, "bool", compute), [axis], keepdims=True
    )
    threshold = writer.add("Div", writer.add("Sub", total, one), count)
    return writer.cast(writer.add("Max", writer.add("Sub", name, threshold), zero), compute, dtype)


def _epsilon(operation: Any) -> float:
    return float(keras.config.epsilon() if operation.epsilon is None else operation.epsilon)


def _compute_dtype(dtype: str) -> str:
    """Returns the dtype in which Keras normalizes."""
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise NoEntryError(f"a normalization of {dtype}")
    return dtype if dtype == "float64" else "float32"


def _is_trailing(axes: list[int], rank: int) -> bool:
    return axes == list(range(rank - len(axes), rank))


@handles("LayerNorm", follows="JAX and TensorFlow, over inner axes")
def layer_norm(
    writer: Writer, node: Node, x: Value, gamma: Value | None = None, beta: Value | None = None
) -> str:
    """Writes `keras.ops.layer_normalization`."""
    operation, rank, dtype = node.operation, len(x.shape), node.spec.dtype
    compute, epsilon = _compute_dtype(dtype), _epsilon(operation)
    axes = axes_of(operation.axis, rank)
    sizes = tuple(x.shape[axis] for axis in axes)
    is_plain = _is_trailing(axes, rank) and not operation.rms_scaling
    if is_plain and not any(map(writer.is_free, sizes)):
        weights = [value for value in (gamma, beta) if value is not None]
        if all(tuple(value.shape) == sizes for value in weights):
            scale = writer.constant(np.ones(sizes, numpy_dtype(dtype)))
            return writer.add(
                "LayerNormalization",
                writer.tensor(x, dtype),
                scale if gamma is None else writer.tensor(gamma, dtype),
                *([] if beta is None else [writer.tensor(beta, dtype)]),
                axis=axes[0] - rank,
                epsilon=epsilon,
            )

    def along_axes(value: Value) -> str:
        name = writer.tensor(value, compute)
        if len(value.shape) == rank or axes == [rank - 1]:
            return name
        target = [x.shape[axis] if axis in axes else 1 for axis in range(rank)]
        return writer.reshape(name, target)

    name = writer.tensor(x, compute)
    centered = writer.add("Sub", name, writer.reduce("ReduceMean", name, axes, keepdims=True))
    square = writer.add("Mul", centered, centered)
    variance = writer.reduce("ReduceMean", square, axes, keepdims=True)
    deviation = writer.add("Sqrt", writer.add("Add", variance, writer.tensor(epsilon, compute)))
    result = writer.add("Div", name if operation.rms_scaling else centered, deviation)
    if gamma is not None:
        result = writer.add("Mul", result, along_axes(gamma))
    if beta is not None and not operation.rms_scaling:
        result = writer.add("Add", result, along_axes(beta))
    return writer.cast(result, compute, dtype)


@handles("RMSNorm")
def rms_norm(writer: Writer, node: Node, x: Value, scale: Value | None = None) -> str:
    """Writes `keras.ops.rms_normalization`."""
    operation, rank, dtype = node.operation, len(x.shape), node.spec.dtype
    compute, epsilon = _compute_dtype(dtype), _epsilon(operation)
    axes = axes_of(operation.axis, rank)
    sizes = tuple(x.shape[axis] for axis in axes)
    if (
        writer.opset >= OPERATOR_OPSETS["RMSNorm"]
        and _is_trailing(axes, rank)
        and scale is not None
        and tuple(scale.shape) == sizes
    ):
        return writer.add(
            "RMSNormalization",
            writer.tensor(x, dtype),
            writer.tensor(scale, dtype),
            axis=axes[0] - rank,
            epsilon=epsilon,
        )
    name = writer.tensor(x, compute)  # ONNX Runtime computes this pattern by one kernel.
    square = writer.add("Pow", name, writer.tensor(2, compute))
    mean = writer.reduce("ReduceMean", square, axes, keepdims=True)
    root = writer.add("Sqrt", writer.add("Add", mean, writer.tensor(epsilon, compute)))
    result = writer.add("Div", name, root)
    if scale is not None:
        result = writer.add("Mul", result, writer.tensor(scale, compute))
    return writer.cast(result, compute, dtype)


@handles("BatchNorm")
def batch_norm(
    writer: Writer,
    node: Node,
    x: Value,
    mean: Value,
    variance: Value,
    offset: Value | None = None,
    scale: Value | None = None,
) -> None:
    """Writes `keras.ops.batch_normalization` as a product and a sum.

    They fold into a convolution before them.
    """
    rank, dtype = len(x.shape), node.spec.dtype
    factor, shift = _factor_and_shift(
        writer, (mean, variance, offset, scale), float(node.operation.epsilon), dtype
    )
    axis, layout = node.operation.axis % rank, LAST
    layouts = writer.layouts(x)
    if axis == rank - 1 and rank > 2 and FIRST in layouts and LAST not in layouts:  # noqa: PLR2004
        axis, layout = 1, FIRST
    if axis != rank - 1:
        shape = writer.integers(-1, *[1] * (rank - 1 - axis))
        factor = writer.add("Reshape", factor, shape)
        shift = writer.add("Reshape", shift, shape)
    name = writer.cast(writer.name(x, layout), x.dtype, dtype)
    writer.put(Value(node), writer.add("Add", writer.add("Mul", name, factor), shift), layout)


def _factor_and_shift(
    writer: Writer, statistics: tuple[Value | None, ...], epsilon: float, dtype: str
) -> tuple[str, str]:
    """Returns the names of two vectors: `x` becomes `x factor + shift`."""
    arrays = [None if value is None else writer.array(value) for value in statistics]
    if [value is None for value in statistics] == [array is None for array in arrays]:
        mean, variance, offset, scale = (
            np.float64(default) if array is None else array.astype("float64")
            for array, default in zip(arrays, (0, 1, 0, 1), strict=True)
        )
        factor = scale / np.sqrt(variance + epsilon)
        return writer.constant(factor, dtype), writer.constant(offset - mean * factor, dtype)
    center, width, shift, gain = (
        None if value is None else writer.tensor(value, dtype) for value in statistics
    )
    root = writer.add("Sqrt", writer.add("Add", width, writer.tensor(epsilon, dtype)))
    inverse = writer.add("Reciprocal", root)
    if gain is not None:
        inverse = writer.add("Mul", inverse, gain)
    moved = writer.add("Neg", writer.add("Mul", center, inverse))
    return inverse, moved if shift is None else writer.add("Add", moved, shift)
