"""Sorting and indices as ONNX nodes.

Equal numbers are sorted by their index. An index beyond the size is an error when the file runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_writer.table.elementwise import promoted
from keras_deepseek.deploy.onnx_writer.table.operand import (
    Operand,
    as_operand,
    computed_in,
    limits,
    shape_of,
    where,
)
from keras_deepseek.deploy.onnx_writer.table.shapes import flat_if_no_axis, full
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node, Value
from keras_deepseek.graph.size_expressions import Size

# Sorting.

SORTED_IN = ("float32", "float64", "int32", "int64")


def _top_k(x: Operand, k: str, axis: int, *, largest: bool) -> tuple[Operand, Operand]:
    """Returns the first `k` numbers in order, and their indices."""
    dtype = computed_in(x.dtype)
    compared = x.cast(dtype if dtype in SORTED_IN else "float32")
    numbers, indices = x.writer.add_several(
        "TopK", compared.name, k, axis=axis, largest=int(largest), sorted=1, outputs=2
    )
    in_order = Operand(x.writer, numbers, compared.dtype).cast(x.dtype)
    return in_order, Operand(x.writer, indices, "int64")


@handles("TopK", "_OpaqueOperation", follows={"TopK": "JAX: NaN first, equal numbers by index"})
def _top_k_operation(writer: Writer, node: Node, x: Value, *tensors: Any) -> list[str]:
    """Writes the largest numbers of the last axis, in order, and their indices.

    This package calls the framework's own top k as an `_OpaqueOperation`.
    """
    if node.kind == "TopK":
        k = node.operation.k
    else:
        function = node.operation._function  # noqa: SLF001
        if getattr(getattr(function, "func", None), "__name__", "") != "top_k" or tensors:
            raise NoEntryError(f"{function}")
        k = function.keywords["k"]
    size = writer.size(k)
    numbers, indices = _top_k(as_operand(writer, x), size, -1, largest=True)
    return [numbers.name, indices.cast(node.outputs[1].dtype).name]


@handles("InTopK", follows="JAX and PyTorch, for NaN")
def _in_top_k(writer: Writer, node: Node, targets: Value, predictions: Value) -> str:
    """Writes whether fewer than k predictions are larger than that of the target."""
    operand = as_operand(writer, predictions)
    index = as_operand(writer, targets, "int64").unsqueeze(-1)
    is_larger = operand > operand.apply("GatherElements", index, axis=-1)
    count = is_larger.cast("int32").reduce("ReduceSum", [-1])
    return count.apply("Less", node.operation.k, dtype="bool").name


@handles("Sort", "Argsort", follows="JAX and PyTorch: NaN last")
def _sort(writer: Writer, node: Node, x: Value) -> str:
    name, axis = flat_if_no_axis(writer, writer.name(x), node.operation.axis)
    is_flat = node.operation.axis is None
    size = writer.shape_of(name, 0) if is_flat else writer.size(writer.axis_size(x, axis))
    numbers, indices = _top_k(Operand(writer, name, x.dtype), size, axis, largest=False)
    return (numbers if node.kind == "Sort" else indices.cast(node.spec.dtype)).name


@handles("Argmax", "Argmin", follows="JAX and PyTorch: the first NaN")
def _argmax(writer: Writer, node: Node, x: Value) -> str:
    """Writes the index of the first largest or smallest number."""
    op, dtype, rank = node.operation, computed_in(x.dtype), len(x.shape)
    operand, largest = as_operand(writer, x, dtype), node.kind == "Argmax"
    if operand.is_float:
        operand = where(operand.is_nan(), np.inf if largest else -np.inf, operand)
    name, axis = flat_if_no_axis(writer, operand.name, op.axis)
    if dtype == "int64":  # For which ONNX Runtime has no kernel.
        operand = Operand(writer, name, dtype)
        index = _top_k(operand, writer.integers(1), axis, largest=largest)[1].name
        index = index if op.keepdims else writer.add("Squeeze", index, writer.integers(axis))
    else:
        kind = "ArgMax" if largest else "ArgMin"
        index = writer.add(kind, name, axis=axis, keepdims=int(op.keepdims))
    if op.axis is None and op.keepdims:
        index = writer.reshape(index, [1] * rank)
    return writer.cast(index, "int64", node.spec.dtype)


@handles("SearchSorted", "Digitize", follows={"SearchSorted": "JAX and PyTorch: NaN last"})
def _search_sorted(writer: Writer, node: Node, *arguments: Any) -> str:
    """Writes for each number how many of a sorted list are smaller, or not larger."""
    if node.kind == "Digitize":
        numbers, edges = arguments
        bounds = writer.array(edges)
        if bounds is not None and (np.diff(bounds) < 0).any():
            raise NoEntryError("Digitize into falling bins")
        is_left = False
    else:
        (edges, numbers), is_left = arguments, node.operation.side == "left"
    dtype = computed_in(promoted([edges, numbers]))
    edge = as_operand(writer, edges, dtype)
    operand = as_operand(writer, numbers, dtype).unsqueeze(-1)
    is_passed = ~(edge >= operand) if is_left else ~(edge > operand)  # NaN passes all.
    return is_passed.cast("int32").reduce("ReduceSum", [-1]).cast(node.spec.dtype).name


# Indices.


def _index(writer: Writer, indices: Any) -> str:
    """Returns the name of indices in a dtype that ONNX takes; fractions are cut off."""
    dtype = indices.dtype if isinstance(indices, Value) else "int64"
    return writer.tensor(indices, dtype if dtype in ("int32", "int64") else "int64")


@handles("OneHot", follows="TensorFlow: fractions are cut off, zeros for what is no class")
def _one_hot(writer: Writer, node: Node, x: Value) -> str:
    op, dtype = node.operation, computed_in(x.dtype) if "int" in x.dtype else "int64"
    rank = len(node.spec.shape)
    axis = op.axis % rank
    shape = [op.num_classes if other == axis else 1 for other in range(rank)]
    classes = writer.constant(np.arange(op.num_classes).reshape(shape), dtype)
    is_class = as_operand(writer, x, dtype).unsqueeze(axis).apply("Equal", classes, dtype="bool")
    return is_class.cast(node.spec.dtype).name


@handles(
    "Take",
    follows="TensorFlow: negative indices count from the end, one beyond the size is an error",
)
def _take(writer: Writer, node: Node, x: Any, indices: Any) -> str:
    name, axis = flat_if_no_axis(writer, writer.tensor(x), node.operation.axis)
    return writer.add("Gather", name, _index(writer, indices), axis=axis)


@handles("TakeAlongAxis", follows="TensorFlow: an index beyond the size is an error")
def _take_along_axis(writer: Writer, node: Node, x: Any, indices: Any) -> str:
    """Writes numbers by indices of a tensor of the same rank, which broadcasts to x."""
    name, axis = flat_if_no_axis(writer, writer.tensor(x), node.operation.axis)
    index, _ = flat_if_no_axis(writer, _index(writer, indices), node.operation.axis)
    if node.operation.axis is not None:
        axis %= len(x.shape)
        name = _expand_like(writer, x, name, indices, axis)
        index = _expand_like(writer, indices, index, x, axis)
    return writer.add("GatherElements", name, index, axis=axis)


def _expand_like(writer: Writer, argument: Any, name: str, other: Any, axis: int) -> str:
    """Returns a tensor with the other's sizes in place of 1, but on one axis."""
    is_expanded = [
        index != axis and size == 1 != shape_of(other)[index]
        for index, size in enumerate(shape_of(argument))
    ]
    if not any(is_expanded):
        return name
    sizes = [
        writer.axis_size(other if expanded else argument, index)
        for index, expanded in enumerate(is_expanded)
    ]
    return writer.add("Expand", name, writer.sizes(sizes))


SEGMENTS: dict[str, tuple[str, Callable[[str], float]]] = {
    "SegmentSum": ("add", lambda _: 0),
    "SegmentProd": ("mul", lambda _: 1),
    "SegmentMax": ("max", lambda dtype: -np.inf if "float" in dtype else limits(dtype)[0]),
    "SegmentMin": ("min", lambda dtype: np.inf if "float" in dtype else limits(dtype)[1]),
}
"""The reduction, and the number of a segment that is empty."""
_EXACT = "JAX: exact for integers, without rows of no segment"


@handles("SegmentMax", "SegmentMin", follows=f"{_EXACT}; TensorFlow, for NaN")
@handles("SegmentProd", "SegmentSum", follows=_EXACT)
def _segments(writer: Writer, node: Node, data: Value, segment_ids: Any) -> str:
    """Writes a reduction of rows by segment. Rows of no segment go to one that is cut off."""
    count, dtype = node.operation.num_segments, computed_in(node.spec.dtype)
    if count is None:
        raise NoEntryError(f"{node.kind} without num_segments: the shape depends on the data")
    kind, neutral = SEGMENTS[node.kind]

    def name_of(size: int) -> str:  # A number that equals a free size of the trace is not that one.
        return writer.size(size) if isinstance(size, Size) else writer.integers(size)

    sizes = writer.sizes([name_of(count + 1), *writer.sizes_of(data)[1:]])
    initial = full(writer, sizes, neutral(node.spec.dtype), dtype)
    ids = as_operand(writer, segment_ids, "int64")
    last = Operand(writer, name_of(count), "int64")
    index = where((ids < 0) | (ids >= last), last, ids).unsqueeze(1).name
    name = writer.add("ScatterND", initial, index, writer.tensor(data, dtype), reduction=kind)
    bounds = writer.integers(0), name_of(count), writer.integers(0)
    return writer.cast(writer.add("Slice", name, *bounds), dtype, node.spec.dtype)


@handles("ScatterUpdate", follows="PyTorch and TensorFlow: an index beyond the size is an error")
def _scatter_update(writer: Writer, node: Node, x: Any, indices: Any, updates: Any) -> str:
    *count, depth = shape_of(indices)
    shape = (*count, *shape_of(x)[int(depth) :])
    if tuple(map(int, shape_of(updates))) != tuple(map(int, shape)):
        raise NoEntryError("ScatterUpdate with updates that broadcast")
    kind = node.operation.reduction or "none"
    return _scatter(writer, node, writer.tensor(x), indices, updates, kind)


@handles("Scatter", follows="PyTorch and TensorFlow: an index beyond the size is an error")
def _scatter_into_zeros(writer: Writer, node: Node, indices: Any, values: Any) -> str:
    zeros = full(writer, writer.sizes(list(node.operation.shape)), 0, node.spec.dtype)
    return _scatter(writer, node, zeros, indices, values, "add")


def _scatter(writer: Writer, node: Node, name: str, indices: Any, updates: Any, kind: str) -> str:
    dtype = node.spec.dtype
    target = Operand(writer, name, dtype).cast(dtype if kind == "none" else computed_in(dtype))
    index = writer.tensor(indices, "int64")
    numbers = as_operand(writer, updates, dtype).cast(target.dtype)
    return target.apply("ScatterND", index, numbers, reduction=kind).cast(dtype).name


@handles("UnravelIndex", follows="JAX and PyTorch")
def _unravel_index(writer: Writer, node: Node, indices: Value) -> list[str]:
    """Writes the index on each axis of a number of a flat tensor."""
    shape = [int(size) for size in node.operation.shape]
    flat = as_operand(writer, indices, computed_in(indices.dtype))
    flat = where(flat < 0, flat + int(np.prod(shape)), flat)
    results = []
    for size in reversed(shape):
        results.append(flat.apply("Mod", size).cast(node.spec.dtype).name)
        flat = flat / size
    return results[::-1]
