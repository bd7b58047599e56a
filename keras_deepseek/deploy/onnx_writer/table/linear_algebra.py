"""Linear algebra as ONNX nodes: norms, triangles, diagonals, determinants.

ONNX inverts, solves and decomposes nothing: `inv`, `solve`, `svd` and their like have no entry.
"""

import math
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_writer.table.operand import Operand
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
    name = writer.cast(writer.name(x), x.dtype, dtype)
    name = writer.add("Trilu", name, offset, upper=int(node.kind == "Triu"))
    return writer.cast(name, dtype, x.dtype)


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
    operation, dtype = node.operation, node.spec.dtype
    wide = "int64" if "int" in dtype else dtype
    name = _diagonal_of(writer, x, operation.offset, operation.axis1, operation.axis2)
    total = writer.reduce("ReduceSum", writer.cast(name, x.dtype, wide), [-1], keepdims=False)
    return writer.cast(total, wide, dtype)


@handles("Diag", "Diagflat")
def _diag(writer: Writer, node: Node, x: Value) -> str:
    offset = node.operation.k
    if node.kind == "Diag" and len(x.shape) > 1:
        return _diagonal_of(writer, x, offset, 0, 1)
    dtype = "int32" if x.dtype == "bool" else x.dtype
    name = flat(writer, x, dtype)
    pads = writer.integers(max(-offset, 0), max(offset, 0))
    name = writer.add("Pad", name, pads, writer.constant(0, dtype))
    size = writer.shape_of(name, 0)
    is_diagonal = writer.add(
        "Equal", column_offsets(writer, size, size), writer.constant(np.int64(offset))
    )
    rows = writer.add("Unsqueeze", name, writer.integers(1))
    name = writer.add("Where", is_diagonal, rows, writer.constant(0, dtype))
    return writer.cast(name, dtype, x.dtype)


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
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    name = writer.cast(writer.tensor(x, dtype), dtype, wide)
    if order in (None, "fro") or (len(axes) == 1 and order in _EUCLIDEAN):
        name = writer.reduce("ReduceL2", name, axes, operation.keepdims)
    elif len(axes) == 1:
        name = _vector_norm(writer, name, axes[0], order, wide, operation.keepdims)
    else:
        name = _matrix_norm(writer, name, axes, order, wide, operation.keepdims)
    return writer.cast(name, wide, dtype)


def _vector_norm(
    writer: Writer, name: str, axis: int, order: Any, dtype: str, keepdims: bool
) -> str:
    if order == 1:
        return writer.reduce("ReduceL1", name, [axis], keepdims)
    if order == 0:
        is_zero = writer.add("Equal", name, writer.constant(0, dtype))
        counted = writer.cast(writer.add("Not", is_zero), "bool", dtype)
        return writer.reduce("ReduceSum", counted, [axis], keepdims)
    size = writer.add("Abs", name)
    if order in _REDUCTIONS:
        sizes = Operand(writer, size, dtype)
        return extreme(_REDUCTIONS[order], sizes, [axis], keepdims).name
    power = writer.add("Pow", size, writer.constant(order, dtype))
    total = writer.reduce("ReduceSum", power, [axis], keepdims)
    return writer.add("Pow", total, writer.constant(1 / order, dtype))


def _matrix_norm(
    writer: Writer, name: str, axes: list[int], order: Any, dtype: str, keepdims: bool
) -> str:
    """Returns the largest or smallest sum of a matrix's columns, or rows if `order` is infinite."""
    if order not in (1, -1, math.inf, -math.inf):
        raise NoEntryError(f"the norm {order} of a matrix, which needs its singular values")
    summed, compared = axes if abs(order) == 1 else axes[::-1]
    sums = Operand(writer, writer.reduce("ReduceL1", name, [summed], keepdims=True), dtype)
    kind = _REDUCTIONS[math.copysign(math.inf, order)]
    name = extreme(kind, sums, [compared], keepdims=True).name
    return name if keepdims else writer.add("Squeeze", name, writer.integers(*axes))
