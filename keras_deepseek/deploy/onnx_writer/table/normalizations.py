"""Softmax and normalizations as ONNX nodes."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.table.operand import Operand, as_operand, where
from keras_deepseek.deploy.onnx_writer.table.shapes import axes_of, is_first
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
def _softmax(writer: Writer, node: Node, x: Value) -> str:
    axes = axes_of(node.operation.axis, len(x.shape))
    return softmax_of(writer, node.kind, writer.tensor(x, node.spec.dtype), axes)


def softmax_of(writer: Writer, kind: str, name: str, axes: list[int]) -> str:
    """Adds a `Softmax` or `LogSoftmax`; ONNX has them for a single axis."""
    if len(axes) == 1:
        return writer.add(kind, name, axis=axes[0])
    name = writer.add("Sub", name, writer.reduce("ReduceLogSumExp", name, axes, keepdims=True))
    return writer.add("Exp", name) if kind == "Softmax" else name


@handles("Sparsemax", follows="PyTorch and TensorFlow, for NaN")
def _sparsemax(writer: Writer, node: Node, x: Value) -> str:
    """Writes what exceeds a threshold at which the sum is 1."""
    dtype, rank = node.spec.dtype, len(x.shape)
    (axis,) = axes_of(node.operation.axis, rank)
    numbers = as_operand(writer, x, dtype if dtype == "float64" else "float32")
    one = numbers.like(1)
    size = writer.size(writer.axis_size(x, axis))
    ordered_name, _ = writer.add_several("TopK", numbers.name, size, axis=axis, outputs=2)
    ordered = Operand(writer, ordered_name, numbers.dtype)
    sums = ordered.apply("CumSum", writer.constant(np.int64(axis)))
    end = Operand(writer, size, "int64").cast(numbers.dtype).apply("Squeeze", writer.integers(0))
    counts = one.apply("Range", end + one, one).reshape(-1, *[1] * (rank - 1 - axis))
    is_support = ordered > (sums - one) / counts
    zero = ordered.like(0)
    total = where(is_support, sums, zero).reduce("ReduceSum", [axis], keepdims=True)
    count = is_support.cast(numbers.dtype).reduce("ReduceSum", [axis], keepdims=True)
    threshold = (total - one) / count
    return (numbers - threshold).maximum(zero).cast(dtype).name


def _compute_dtype(dtype: str) -> str:
    """Returns the dtype in which Keras normalizes."""
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        raise NoEntryError(f"a normalization of {dtype}")
    return dtype if dtype == "float64" else "float32"


def _epsilon(operation: Any) -> float:
    return float(keras.config.epsilon() if operation.epsilon is None else operation.epsilon)


def _is_trailing(axes: list[int], rank: int) -> bool:
    return axes == list(range(rank - len(axes), rank))


@handles("LayerNorm", follows="JAX and TensorFlow, over inner axes")
def _layer_norm(
    writer: Writer, node: Node, x: Value, gamma: Value | None = None, beta: Value | None = None
) -> str:
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
                None if beta is None else writer.tensor(beta, dtype),
                axis=axes[0] - rank,
                epsilon=epsilon,
            )

    def along_axes(value: Value) -> Operand:
        weight = as_operand(writer, value, compute)
        if len(value.shape) == rank or axes == [rank - 1]:
            return weight
        target = [x.shape[axis] if axis in axes else 1 for axis in range(rank)]
        return Operand(writer, writer.reshape(weight.name, target), compute)

    numbers = as_operand(writer, x, compute)
    centered = numbers - numbers.reduce("ReduceMean", axes, keepdims=True)
    variance = (centered * centered).reduce("ReduceMean", axes, keepdims=True)
    deviation = (variance + epsilon).apply("Sqrt")
    result = (numbers if operation.rms_scaling else centered) / deviation
    if gamma is not None:
        result = result * along_axes(gamma)
    if beta is not None and not operation.rms_scaling:
        result = result + along_axes(beta)
    return result.cast(dtype).name


@handles("RMSNorm")
def _rms_norm(writer: Writer, node: Node, x: Value, scale: Value | None = None) -> str:
    operation, rank, dtype = node.operation, len(x.shape), node.spec.dtype
    compute, epsilon = _compute_dtype(dtype), _epsilon(operation)
    axes = axes_of(operation.axis, rank)
    if (
        writer.opset >= OPERATOR_OPSETS["RMSNorm"]
        and _is_trailing(axes, rank)
        and scale is not None
        and tuple(scale.shape) == tuple(x.shape[axis] for axis in axes)
    ):
        inputs = writer.tensor(x, dtype), writer.tensor(scale, dtype)
        return writer.add("RMSNormalization", *inputs, axis=axes[0] - rank, epsilon=epsilon)
    numbers = as_operand(writer, x, compute)  # ONNX Runtime computes this pattern by one kernel.
    mean = (numbers**2).reduce("ReduceMean", axes, keepdims=True)
    result = numbers / (mean + epsilon).apply("Sqrt")
    if scale is not None:
        result = result * as_operand(writer, scale, compute)
    return result.cast(dtype).name


@handles("BatchNorm")
def _batch_norm(
    writer: Writer,
    node: Node,
    x: Value,
    mean: Value,
    variance: Value,
    offset: Value | None = None,
    scale: Value | None = None,
) -> None:
    """Writes a product and a sum, which fold into a convolution before them."""
    rank, dtype = len(x.shape), node.spec.dtype
    factor, shift = _factor_and_shift(writer, node, (mean, variance, offset, scale))
    axis, layout = node.operation.axis % rank, LAST
    if axis == rank - 1 and rank > 2 and is_first(writer, x):  # noqa: PLR2004
        axis, layout = 1, FIRST
    if axis != rank - 1:
        shape = (-1, *[1] * (rank - 1 - axis))
        factor, shift = factor.reshape(*shape), shift.reshape(*shape)
    numbers = Operand(writer, writer.name(x, layout), x.dtype).cast(dtype)
    writer.put(Value(node), (numbers * factor + shift).name, layout)


def _factor_and_shift(
    writer: Writer, node: Node, statistics: tuple[Value | None, ...]
) -> tuple[Operand, Operand]:
    """Returns two vectors: `x` becomes `x factor + shift`."""
    epsilon, dtype = float(node.operation.epsilon), node.spec.dtype
    arrays = [None if value is None else writer.array(value) for value in statistics]
    if [value is None for value in statistics] == [array is None for array in arrays]:
        mean, variance, offset, scale = (
            np.float64(default) if array is None else array.astype("float64")
            for array, default in zip(arrays, (0, 1, 0, 1), strict=True)
        )
        factor = scale / np.sqrt(variance + epsilon)
        product = as_operand(writer, factor, dtype)
        return product, as_operand(writer, offset - mean * factor, dtype)
    center, width = (as_operand(writer, value, dtype) for value in statistics[:2])
    shift, gain = (
        None if value is None else as_operand(writer, value, dtype) for value in statistics[2:]
    )
    inverse = (width + epsilon).apply("Sqrt").apply("Reciprocal")
    inverse = inverse if gain is None else inverse * gain
    moved = -(center * inverse)
    return inverse, moved if shift is None else moved + shift
