"""Reductions, and running sums and products, as ONNX nodes.

Sums and products of integers wrap around. NaN is the largest and the smallest number.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from onnx import helper

from keras_deepseek.deploy.onnx_writer.table.elementwise import SPATIAL_RANK
from keras_deepseek.deploy.onnx_writer.table.indices import axes_of, flat_if_no_axis
from keras_deepseek.deploy.onnx_writer.table.operand import Operand, computed_in, shape_of, where
from keras_deepseek.deploy.onnx_writer.table.shapes import full
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
def reduction(writer: Writer, node: Node, x: Value, **_: Any) -> None:
    """Writes a reduction over axes."""
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
        initial = Operand(writer, writer.tensor(op.initial, result.dtype), result.dtype)
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
def extreme_without_nan(writer: Writer, node: Node, x: Value) -> str:
    """Writes the largest or smallest number, or NaN if there is none."""
    axes, keepdims = axes_of(node.operation.axis, len(x.shape)), node.operation.keepdims
    is_max = node.kind == "Nanmax"
    kind = "ReduceMax" if is_max else "ReduceMin"
    operand = _as_computed(Operand(writer, writer.name(x), x.dtype), node.spec.dtype)
    if not operand.is_float:
        return operand.reduce(kind, axes, keepdims).cast(node.spec.dtype).name
    filled = where(operand.is_nan(), operand.like(-np.inf if is_max else np.inf), operand)
    is_empty = operand.is_nan().cast("int32").reduce("ReduceMin", axes, keepdims)
    result = filled.reduce(kind, axes, keepdims)
    return where(is_empty.cast("bool"), np.nan, result).name


@handles("Nanmean")
def mean_without_nan(writer: Writer, node: Node, x: Value) -> str:
    """Writes the mean of the numbers that are not NaN."""
    axes, keepdims = axes_of(node.operation.axis, len(x.shape)), node.operation.keepdims
    operand = Operand(writer, writer.tensor(x, node.spec.dtype), node.spec.dtype)
    is_number = ~operand.is_nan()
    total = where(is_number, operand, 0).reduce("ReduceSum", axes, keepdims)
    count = is_number.cast(operand.dtype).reduce("ReduceSum", axes, keepdims)
    return (total / count).name


@handles("Ptp", follows=_NO_AXES)
def peak_to_peak(writer: Writer, node: Node, x: Value) -> str:
    """Writes the largest less the smallest number."""
    axes, keepdims = axes_of(node.operation.axis, len(x.shape)), node.operation.keepdims
    operand = _as_computed(Operand(writer, writer.name(x), x.dtype), node.spec.dtype)
    largest, smallest = (
        extreme(kind, operand, axes, keepdims) for kind in ("ReduceMax", "ReduceMin")
    )
    return (largest - smallest).cast(node.spec.dtype).name


@handles("Average")
def average(writer: Writer, node: Node, x: Value, weights: Any = None) -> str:
    """Writes a mean, or a mean by weights: those of one axis, or of all numbers."""
    rank, dtype = len(x.shape), node.spec.dtype
    axes = axes_of(node.operation.axis, rank)
    operand = Operand(writer, writer.tensor(x, dtype), dtype)
    if weights is None:
        return operand.reduce("ReduceMean", axes).name
    weight = Operand(writer, writer.tensor(weights, dtype), dtype)
    if len(shape_of(weights)) != rank:  # That of one axis.
        shape = [-1 if axis in axes else 1 for axis in range(rank)]
        weight = Operand(writer, writer.reshape(weight.name, shape), dtype)
    total = (operand * weight).reduce("ReduceSum", axes)
    return (total / weight.reduce("ReduceSum", axes)).name


@handles("Var", "Std", "Moments", follows={"Var": _NO_AXES, "Std": _NO_AXES})
def variance(writer: Writer, node: Node, x: Value) -> str | list[str]:
    """Writes the mean of squared differences from the mean."""
    op, dtype = node.operation, node.spec.dtype
    axes = axes_of(op.axes if node.kind == "Moments" else op.axis, len(x.shape))
    operand = Operand(writer, writer.tensor(x, dtype), dtype)
    operand = operand.cast("float32" if dtype == "float16" else dtype)
    mean = operand.reduce("ReduceMean", axes, keepdims=True)
    difference = operand - mean
    spread = (difference * difference).reduce("ReduceMean", axes, op.keepdims)
    if node.kind == "Std":
        spread = spread.apply("Sqrt")
    if node.kind != "Moments":
        return spread.cast(dtype).name
    if not op.keepdims and axes:
        mean = mean.apply("Squeeze", Operand(writer, writer.integers(*axes), "int64"))
    return [mean.cast(dtype).name, spread.cast(dtype).name]


@handles("Normalize")
def normalize(writer: Writer, node: Node, x: Value) -> str:
    """Writes x divided by its Euclidean norm."""
    op, dtype = node.operation, node.spec.dtype
    epsilon = keras.config.epsilon() if op.epsilon is None else op.epsilon
    if op.order != 2:  # noqa: PLR2004
        raise NoEntryError(f"Normalize of order {op.order}")
    operand = Operand(writer, writer.tensor(x, dtype), dtype)
    axes = axes_of(op.axis, len(x.shape))
    norm = (operand * operand).reduce("ReduceSum", axes, keepdims=True).apply("Sqrt")
    return (operand * norm.apply("Reciprocal").minimum(1 / epsilon)).name


@handles("Cumsum", "Nancumsum", follows={"Nancumsum": "JAX: infinities stay"})
def cumsum(writer: Writer, node: Node, x: Value) -> str:
    """Writes the sums up to each index."""
    operand, axis, _ = _running(writer, node, x, 0)
    index = Operand(writer, writer.constant(np.int64(axis)), "int64")
    return operand.apply("CumSum", index).cast(node.spec.dtype).name


@handles("Cumprod", "Nancumprod", follows={"Nancumprod": "JAX: infinities stay"})
def cumprod(writer: Writer, node: Node, x: Value) -> str:
    """Writes the products up to each index."""
    operand, axis, rank = _running(writer, node, x, 1)
    axis %= rank
    sizes = [writer.shape_of(operand.name, other) for other in range(rank) if other != axis]
    return scan_products(operand, axis, sizes)[1].cast(node.spec.dtype).name


def _running(writer: Writer, node: Node, x: Value, neutral: int) -> tuple[Operand, int, int]:
    """Returns the numbers to sum or multiply, the axis and the rank, flat if there is no axis."""
    dtype = computed_in(node.spec.dtype)
    operand = Operand(writer, writer.name(x), x.dtype)
    if operand.is_float and node.kind.startswith("Nan"):
        operand = where(operand.is_nan(), neutral, operand)
    name, axis = flat_if_no_axis(writer, operand.cast(dtype).name, node.operation.axis)
    rank = 1 if node.operation.axis is None else len(x.shape)
    return Operand(writer, name, dtype), axis, rank


@handles("Diff")
def differences(writer: Writer, node: Node, x: Value) -> str:
    """Writes the differences of neighbours, `n` times."""
    dtype = computed_in(x.dtype)
    if x.dtype == "bool":
        raise NoEntryError("Diff of bool")
    operand = Operand(writer, writer.tensor(x, dtype), dtype)
    axis = writer.integers(node.operation.axis)

    def cut(start: int, stop: int) -> Operand:
        bounds = writer.integers(start), writer.integers(stop)
        return Operand(writer, writer.add("Slice", operand.name, *bounds, axis), dtype)

    for _ in range(node.operation.n):
        operand = cut(1, np.iinfo("int32").max) - cut(0, -1)
    return operand.cast(x.dtype).name
