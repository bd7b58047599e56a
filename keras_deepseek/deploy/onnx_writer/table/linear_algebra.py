"""Linear algebra as ONNX nodes: norms, triangles, diagonals, determinants.

ONNX inverts, solves and decomposes nothing: `inv`, `solve`, `svd` and their like have no entry.
"""

import math
from typing import Any

from keras_deepseek.deploy.onnx_writer.table.operand import Operand, as_operand, where
from keras_deepseek.deploy.onnx_writer.table.reductions import extreme
from keras_deepseek.deploy.onnx_writer.table.shapes import (
    axis_list,
    column_offsets,
    flat,
    moved,
    permuted,
    positions,
)
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node, Value

_REDUCTIONS = {math.inf: "ReduceMax", -math.inf: "ReduceMin"}
_EUCLIDEAN = (2,)
_TRILU_DTYPES = ("float32", "float64", "int64")
"""The dtypes for which onnxruntime has `Trilu`."""


@handles("Tril", "Triu")
def _triangle(writer: Writer, node: Node, x: Value) -> str:
    dtype = x.dtype
    if dtype not in _TRILU_DTYPES:
        dtype = "int64" if "int" in dtype else "float32"
    offset = writer.tensor(node.operation.k, "int64")
    triangle = as_operand(writer, x).cast(dtype)
    triangle = triangle.apply("Trilu", offset, upper=int(node.kind == "Triu"))
    return triangle.cast(x.dtype).name


def _diagonal_of(writer: Writer, x: Value, offset: int, axis1: int, axis2: int) -> str:
    """Returns a diagonal of the matrices in two axes, as the last axis."""
    rank = len(x.shape)
    name = permuted(writer, x, moved(rank, [axis1, axis2], [-2, -1]))
    rows, columns = (writer.size(writer.axis_size(x, axis)) for axis in (axis1, axis2))
    shorter = writer.integers(min(offset, 0)), writer.integers(-max(offset, 0))
    lengths = writer.add("Add", rows, shorter[0]), writer.add("Add", columns, shorter[1])
    length = writer.add("Max", writer.add("Min", *lengths), writer.integers(0))
    step = writer.add("Add", columns, writer.integers(1))
    start = writer.integers(offset)
    if offset < 0:
        start = writer.add("Mul", columns, writer.integers(-offset))
    index = writer.add("Add", writer.add("Mul", positions(writer, length), step), start)
    sizes = [0] * (rank - 2)
    return writer.add("Gather", writer.reshape(name, [*sizes, -1]), index, axis=rank - 2)


@handles("Diagonal", follows="JAX and PyTorch, outside of the matrix")
def _diagonal(writer: Writer, node: Node, x: Value) -> str:
    operation = node.operation
    return _diagonal_of(writer, x, operation.offset, operation.axis1, operation.axis2)


@handles("Trace", follows="JAX and PyTorch, outside of the matrix")
def _trace(writer: Writer, node: Node, x: Value) -> str:
    dtype = node.spec.dtype
    diagonal = Operand(writer, _diagonal(writer, node, x), x.dtype)
    total = diagonal.cast("int64" if "int" in dtype else dtype).reduce("ReduceSum", [-1])
    return total.cast(dtype).name


@handles("Diag", "Diagflat")
def _diag(writer: Writer, node: Node, x: Value) -> str:
    offset = node.operation.k
    if node.kind == "Diag" and len(x.shape) > 1:
        return _diagonal_of(writer, x, offset, 0, 1)
    dtype = "int32" if x.dtype == "bool" else x.dtype
    numbers = Operand(writer, flat(writer, x, dtype), dtype)
    numbers = numbers.apply("Pad", writer.integers(max(-offset, 0), max(offset, 0)), 0)
    size = writer.shape_of(numbers.name, 0)
    is_diagonal = Operand(writer, column_offsets(writer, size, size), "int64").equals(offset)
    return where(is_diagonal, numbers.unsqueeze(1), 0).cast(x.dtype).name


@handles("Det")
def _det(writer: Writer, _node: Node, x: Value) -> str:
    if x.dtype != "float32":
        raise NoEntryError(f"Det of {x.dtype}, which onnxruntime lacks")
    return writer.add("Det", writer.name(x))


@handles("Norm")
def _norm(writer: Writer, node: Node, x: Value) -> str:
    operation, rank, dtype = node.operation, len(x.shape), node.spec.dtype
    axes, order = axis_list(operation.axis, rank), operation.ord
    if operation.axis is None and order is not None and rank not in (1, 2):
        raise NoEntryError("a norm of more than two axes")
    numbers = as_operand(writer, x, dtype)
    numbers = numbers.cast("float32" if dtype in ("float16", "bfloat16") else dtype)
    if order in (None, "fro") or (len(axes) == 1 and order in _EUCLIDEAN):
        numbers = numbers.apply(
            "ReduceL2", writer.integers(*axes), keepdims=int(operation.keepdims)
        )
    elif len(axes) == 1:
        numbers = _vector_norm(numbers, axes, order, operation.keepdims)
    else:
        numbers = _matrix_norm(numbers, axes, order, operation.keepdims)
    return numbers.cast(dtype).name


def _vector_norm(numbers: Operand, axes: list[int], order: Any, keepdims: bool) -> Operand:
    if order == 1:
        return numbers.reduce("ReduceL1", axes, keepdims)
    if order == 0:
        return (~numbers.equals(0)).cast(numbers.dtype).reduce("ReduceSum", axes, keepdims)
    sizes = abs(numbers)
    if order in _REDUCTIONS:
        return extreme(_REDUCTIONS[order], sizes, axes, keepdims)
    total = sizes.apply("Pow", order).reduce("ReduceSum", axes, keepdims)
    return total.apply("Pow", 1 / order)


def _matrix_norm(numbers: Operand, axes: list[int], order: Any, keepdims: bool) -> Operand:
    """Returns the largest or smallest sum of a matrix's columns, or rows if `order` is infinite."""
    if order not in (1, -1, math.inf, -math.inf):
        raise NoEntryError(f"the norm {order} of a matrix, which needs its singular values")
    summed, compared = axes if abs(order) == 1 else axes[::-1]
    sums = numbers.reduce("ReduceL1", [summed], keepdims=True)
    kind = _REDUCTIONS[math.copysign(math.inf, order)]
    norm = extreme(kind, sums, [compared], keepdims=True)
    return norm if keepdims else norm.apply("Squeeze", norm.writer.integers(*axes))
