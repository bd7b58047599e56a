"""Operations that create tensors, of sizes and numbers alone, as ONNX nodes."""

from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_writer.table.operand import Operand, as_operand
from keras_deepseek.deploy.onnx_writer.table.shapes import column_offsets, full, numbers
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node, Value


@handles("ZerosLike", "OnesLike", "FullLike", "EmptyLike")
def _like(writer: Writer, node: Node, x: Value, fill_value: Any = 0) -> str:
    value = 1 if node.kind == "OnesLike" else fill_value
    return full(writer, writer.sizes(writer.sizes_of(x)), value, node.spec.dtype)


@handles("Full")
def _full(writer: Writer, node: Node, fill_value: Any) -> str:
    return full(writer, numbers(writer, node.operation.shape), fill_value, node.spec.dtype)


@handles("Create")
def _create(writer: Writer, node: Node, *args: Any) -> Any:
    kind, dtype = node.operation.function, node.spec.dtype
    if kind == "arange":
        return _arange(writer, node, *args)
    if kind == "eye":
        rows, columns, offset = (*args, None, None)[:3]
        columns = rows if columns is None else columns
        difference = Operand(writer, column_offsets(writer, rows, columns), "int64")
        diagonal = as_operand(writer, 0 if offset is None else offset, "int64")
        return difference.equals(diagonal).cast(dtype).name
    fills = {"ones": 1, "zeros": 0, "empty": 0}
    if kind not in fills and kind != "full":
        raise NoEntryError(f"ops.{kind}")
    shape = [args[0]] if isinstance(args[0], int) else list(args[0])
    return full(writer, numbers(writer, shape), fills[kind] if kind in fills else args[1], dtype)


@handles("Arange")
def _arange(writer: Writer, node: Node, start: Any, stop: Any = None, step: Any = None) -> str:
    start, stop = (0, start) if stop is None else (start, stop)
    bounds, dtype = (start, stop, 1 if step is None else step), node.spec.dtype
    is_whole = "int" in dtype
    for bound in bounds:
        kind = bound.dtype if hasattr(bound, "dtype") else type(bound).__name__
        if is_whole and "float" in str(kind):
            raise NoEntryError("a range of integers by steps of other numbers")
    wide = "int64" if is_whole else "float64"
    return writer.cast(writer.add("Range", *(writer.tensor(b, wide) for b in bounds)), wide, dtype)


@handles("Linspace", follows="JAX and TensorFlow: the start if `num` is 1")
def _linspace(writer: Writer, node: Node, start: Any, stop: Any) -> str:
    operation, dtype, rank = node.operation, node.spec.dtype, len(node.spec.shape) - 1
    if "int" in (operation.dtype or "") or operation.retstep:
        raise NoEntryError("Linspace of integers, or with its step")
    axis = operation.axis % (rank + 1)
    ends = []
    for bound in (start, stop):
        end, bound_rank = as_operand(writer, bound, dtype), len(getattr(bound, "shape", ()))
        if bound_rank not in (0, rank):
            raise NoEntryError("Linspace between tensors of different ranks")
        ends.append(end.unsqueeze(axis) if bound_rank else end)
    shares = np.arange(operation.num) / max(operation.num - bool(operation.endpoint), 1)
    shares = np.expand_dims(shares, [index for index in range(rank + 1) if index != axis])
    return (ends[0] * (1 - shares) + ends[1] * shares).name


@handles("Meshgrid")
def _meshgrid(writer: Writer, node: Node, *xs: Value) -> list[str]:
    specs = zip(xs, node.outputs, strict=True)
    if any(len(x.shape) > 1 or x.dtype != spec.dtype for x, spec in specs):
        raise NoEntryError("Meshgrid of several axes, or of another dtype than Keras infers")
    axes = list(range(len(xs)))
    if node.operation.indexing == "xy":
        axes[:2] = axes[1::-1]
    sizes = [writer.size(writer.axis_size(x, 0) if x.shape else 1) for x in xs]
    target = writer.sizes([sizes[axes.index(index)] for index in range(len(xs))])
    grids = []
    for x, axis in zip(xs, axes, strict=True):
        shape = writer.integers(*(-1 if index == axis else 1 for index in range(len(xs))))
        grids.append(writer.add("Expand", writer.add("Reshape", writer.name(x), shape), target))
    return grids
