"""Reductions, and running sums and products, as ONNX nodes.

Sums and products of integers wrap around. NaN is the largest and the smallest number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from onnx import helper

from keras_deepseek.deploy.onnx_writer.table.elementwise import SPATIAL_RANK
from keras_deepseek.deploy.onnx_writer.table.operand import (
    Operand,
    as_operand,
    computed_in,
    shape_of,
    where,
)
from keras_deepseek.deploy.onnx_writer.table.shapes import END, axes_of, flat_if_no_axis, full
from keras_deepseek.deploy.onnx_writer.writer import (
    FIRST,
    LAST,
    TYPES,
    NoEntryError,
    Writer,
    handles,
    to_first,
)
from keras_deepseek.graph.ir import Node, Value


def _as_integers(x: Operand, _: str) -> Operand:
    return x.cast("bool").cast("int32")


def _as_summed(x: Operand, dtype: str) -> Operand:
    """Casts integers to int64: ONNX Runtime sums int32 as floats, and clips instead of wrapping."""
    return x.cast(dtype if "float" in dtype else "int64")


def _as_computed(x: Operand, dtype: str) -> Operand:
    return x.cast(computed_in(dtype))


def _without_nan(
    replacement: float, prepare: Callable[[Operand, str], Operand]
) -> Callable[[Operand, str], Operand]:
    return lambda x, dtype: prepare(where(x.is_nan(), replacement, x) if x.is_float else x, dtype)


REDUCTIONS: dict[str, tuple[str, Callable[[Operand, str], Operand]]] = {
    "All": ("ReduceMin", _as_integers),
    "Amax": ("ReduceMax", _as_computed),
    "Amin": ("ReduceMin", _as_computed),
    "Any": ("ReduceSum", _as_integers),  # 0 of an empty axis.
    "CountNonzero": ("ReduceSum", _as_integers),
    "Logsumexp": ("ReduceLogSumExp", _as_computed),
    "Max": ("ReduceMax", _as_computed),
    "Mean": ("ReduceMean", _as_computed),
    "Min": ("ReduceMin", _as_computed),
    "Nanprod": ("ReduceProd", _without_nan(1, _as_computed)),
    "Nansum": ("ReduceSum", _without_nan(0, _as_summed)),
    "Prod": ("ReduceProd", _as_computed),
    "Sum": ("ReduceSum", _as_summed),
}
"""The operator, and a function of the tensor and the output's dtype that prepares the tensor."""
_NO_AXES = "JAX and TensorFlow, over no axes"


@handles(*REDUCTIONS, follows={"Nanprod": _NO_AXES, "Nansum": _NO_AXES})
def _reduction(writer: Writer, node: Node, x: Value, **_: Any) -> None:
    op, rank, dtype = node.operation, len(x.shape), node.spec.dtype
    axes, keepdims = axes_of(op.axis, rank), getattr(op, "keepdims", False)
    layout = _layout_to_reduce(writer, x, axes, keepdims)
    if layout == FIRST:
        axes = sorted(to_first(rank).index(axis) for axis in axes)
    kind, prepare = REDUCTIONS[node.kind]
    prepared = prepare(Operand(writer, writer.name(x, layout), x.dtype), dtype)
    if kind == "ReduceProd" and not prepared.is_float:
        sizes = [writer.shape_of(prepared.name, axis) for axis in range(rank)]
        result = _product_of_integers(prepared, axes, sizes, keepdims)
    elif kind in ("ReduceMax", "ReduceMin"):
        result = extreme(kind, prepared, axes, keepdims)
    else:
        result = prepared.reduce(kind, axes, keepdims)
    if getattr(op, "initial", None) is not None:
        initial = as_operand(writer, op.initial, result.dtype)
        result = result.maximum(initial) if kind == "ReduceMax" else result.minimum(initial)
    layout = layout if keepdims else LAST
    writer.put(Value(node), result.cast(dtype).name, layout)


def extreme(kind: str, x: Operand, axes: Sequence[int], keepdims: bool) -> Operand:
    """Returns the largest or smallest number, or NaN if there is one: ONNX Runtime ignores it."""
    result = x.reduce(kind, axes, keepdims)
    if not x.is_float:
        return result
    has_nan = x.is_nan().cast("int32").reduce("ReduceMax", axes, keepdims).cast("bool")
    return where(has_nan, np.nan, result)


def _layout_to_reduce(writer: Writer, x: Value, axes: Sequence[int], keepdims: bool) -> str:
    """Returns the layout that a tensor has, if the result is then right without a transposition."""
    rank = len(x.shape)
    if rank < SPATIAL_RANK or LAST in writer.layouts(x):
        return LAST
    return FIRST if keepdims or set(range(1, rank - 1)) <= set(axes) else LAST


def _product_of_integers(
    x: Operand, axes: Sequence[int], sizes: Sequence[str], keepdims: bool
) -> Operand:
    """Returns a product that wraps around, where `ReduceProd` clips."""
    sizes = list(sizes)
    for axis in reversed(axes):
        del sizes[axis]
        x = scan_products(x, axis, sizes)[0]
    if not keepdims or not axes:
        return x
    return x.unsqueeze(*axes)


def scan_products(x: Operand, axis: int, other_sizes: Sequence[int | str]) -> list[Operand]:
    """Returns the product along an axis, and the products up to each index."""
    writer, kind = x.writer, TYPES[x.dtype]
    names = ["state", "number", "product", "output"]
    state, element, product, output = (f"{x.name}_{axis}_{name}" for name in names)
    body = helper.make_graph(
        [
            helper.make_node("Mul", [state, element], [product]),
            helper.make_node("Identity", [product], [output]),
        ],
        "multiply",
        [helper.make_tensor_value_info(name, kind, None) for name in (state, element)],
        [helper.make_tensor_value_info(name, kind, None) for name in (product, output)],
    )
    ones = full(writer, writer.sizes(list(other_sizes)), 1, x.dtype)
    axes = {"scan_input_axes": [axis], "scan_output_axes": [axis]}
    results = writer.add_several(
        "Scan", ones, x.name, outputs=2, num_scan_inputs=1, body=body, **axes
    )
    return [Operand(writer, name, x.dtype) for name in results]


@handles("Nanmax", "Nanmin")
def _extreme_without_nan(writer: Writer, node: Node, x: Value) -> str:
    """Writes the largest or smallest number, or NaN if there is none."""
    axes, keepdims = axes_of(node.operation.axis, len(x.shape)), node.operation.keepdims
    kind, least = ("ReduceMax", -np.inf) if node.kind == "Nanmax" else ("ReduceMin", np.inf)
    operand = _as_computed(as_operand(writer, x), node.spec.dtype)
    if not operand.is_float:
        return operand.reduce(kind, axes, keepdims).cast(node.spec.dtype).name
    filled = where(operand.is_nan(), least, operand)
    is_empty = operand.is_nan().cast("int32").reduce("ReduceMin", axes, keepdims)
    result = filled.reduce(kind, axes, keepdims)
    return where(is_empty.cast("bool"), np.nan, result).name


@handles("Nanmean")
def _mean_without_nan(writer: Writer, node: Node, x: Value) -> str:
    axes, keepdims = axes_of(node.operation.axis, len(x.shape)), node.operation.keepdims
    operand = as_operand(writer, x, node.spec.dtype)
    is_number = ~operand.is_nan()
    total = where(is_number, operand, 0).reduce("ReduceSum", axes, keepdims)
    count = is_number.cast(operand.dtype).reduce("ReduceSum", axes, keepdims)
    return (total / count).name


@handles("Ptp", follows=_NO_AXES)
def _peak_to_peak(writer: Writer, node: Node, x: Value) -> str:
    """Writes the largest less the smallest number."""
    axes, keepdims = axes_of(node.operation.axis, len(x.shape)), node.operation.keepdims
    operand = _as_computed(as_operand(writer, x), node.spec.dtype)
    largest = extreme("ReduceMax", operand, axes, keepdims)
    return (largest - extreme("ReduceMin", operand, axes, keepdims)).cast(node.spec.dtype).name


@handles("Average")
def _average(writer: Writer, node: Node, x: Value, weights: Any = None) -> str:
    """Writes a mean, or a mean by weights: those of one axis, or of all numbers."""
    rank, dtype = len(x.shape), node.spec.dtype
    axes = axes_of(node.operation.axis, rank)
    operand = as_operand(writer, x, dtype)
    if weights is None:
        return operand.reduce("ReduceMean", axes).name
    weight = as_operand(writer, weights, dtype)
    if len(shape_of(weights)) != rank:  # That of one axis.
        weight = weight.reshape(*(-1 if axis in axes else 1 for axis in range(rank)))
    total = (operand * weight).reduce("ReduceSum", axes)
    return (total / weight.reduce("ReduceSum", axes)).name


@handles("Var", "Std", "Moments", follows={"Var": _NO_AXES, "Std": _NO_AXES})
def _variance(writer: Writer, node: Node, x: Value) -> str | list[str]:
    """Writes the mean of squared differences from the mean."""
    op, dtype = node.operation, node.spec.dtype
    axes = axes_of(op.axes if node.kind == "Moments" else op.axis, len(x.shape))
    operand = as_operand(writer, x, dtype).cast("float32" if dtype == "float16" else dtype)
    mean = operand.reduce("ReduceMean", axes, keepdims=True)
    difference = operand - mean
    spread = (difference * difference).reduce("ReduceMean", axes, op.keepdims)
    if node.kind == "Std":
        spread = spread.apply("Sqrt")
    if node.kind != "Moments":
        return spread.cast(dtype).name
    if not op.keepdims and axes:
        mean = mean.apply("Squeeze", writer.integers(*axes))
    return [mean.cast(dtype).name, spread.cast(dtype).name]


@handles("Normalize")
def _normalize(writer: Writer, node: Node, x: Value) -> str:
    """Writes x divided by its Euclidean norm."""
    op = node.operation
    epsilon = keras.config.epsilon() if op.epsilon is None else op.epsilon
    if op.order != 2:  # noqa: PLR2004
        raise NoEntryError(f"Normalize of order {op.order}")
    operand = as_operand(writer, x, node.spec.dtype)
    axes = axes_of(op.axis, len(x.shape))
    norm = (operand * operand).reduce("ReduceSum", axes, keepdims=True).apply("Sqrt")
    return (operand * norm.apply("Reciprocal").minimum(1 / epsilon)).name


@handles(
    "Cumsum",
    "Cumprod",
    "Nancumsum",
    "Nancumprod",
    follows=dict.fromkeys(("Nancumsum", "Nancumprod"), "JAX: infinities stay"),
)
def _cumulate(writer: Writer, node: Node, x: Value) -> str:
    """Writes the sums or products up to each index."""
    is_sum, operand = node.kind.endswith("sum"), as_operand(writer, x)
    if operand.is_float and node.kind.startswith("Nan"):
        operand = where(operand.is_nan(), 0 if is_sum else 1, operand)
    operand = operand.cast(computed_in(node.spec.dtype))
    name, axis = flat_if_no_axis(writer, operand.name, node.operation.axis)
    operand = Operand(writer, name, operand.dtype)
    if is_sum:
        result = operand.apply("CumSum", writer.constant(np.int64(axis)))
    else:
        rank = 1 if node.operation.axis is None else len(x.shape)
        axis %= rank
        sizes = [writer.shape_of(name, other) for other in range(rank) if other != axis]
        result = scan_products(operand, axis, sizes)[1]
    return result.cast(node.spec.dtype).name


@handles("Diff")
def _differences(writer: Writer, node: Node, x: Value) -> str:
    """Writes the differences of neighbours, `n` times."""
    if x.dtype == "bool":
        raise NoEntryError("Diff of bool")
    operand = as_operand(writer, x, computed_in(x.dtype))
    axis = writer.integers(node.operation.axis)
    for _ in range(node.operation.n):
        later, earlier = (
            operand.apply("Slice", writer.integers(start), writer.integers(stop), axis)
            for start, stop in ((1, END), (0, -1))
        )
        operand = later - earlier
    return operand.cast(x.dtype).name
