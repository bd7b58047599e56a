"""Fusion passes for layer and RMS normalization, into ONNX's operators of opset 17 and 23.

Keras computes a layer normalization as `x * f + (bias - mean * f)`, where `f` is the scale by the
deviation. Runtimes do not recognize this form, and it reads and writes the tensor eight times.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute, in_both_orders

_SQUARE = 2.0

_LAYER_OPSET = 17
_RMS_OPSET = 23


class Mean(NamedTuple):
    """A matched mean over the last axes: its input tensor, the number of axes, and its nodes."""

    source: str
    num_axes: int
    nodes: list[Any]


class Root(NamedTuple):
    """A matched inverse square root of a tensor plus epsilon."""

    source: str
    epsilon: float
    nodes: list[Any]


def find_mean(view: GraphView, name: str) -> Mean | None:
    """Matches the mean that computes a tensor; `None` if it is computed otherwise."""
    node = view.producer(name, "ReduceMean", "Div")
    if node is None:
        return None
    if node.op_type == "Div":
        return _find_divided(view, node, "ReduceSum")
    num_axes = _count_last_axes(view, node)
    return Mean(node.input[0], num_axes, [node]) if num_axes else None


def find_mean_square(view: GraphView, name: str) -> Mean | None:
    """Matches the mean of squares that computes a tensor; `None` if it is computed otherwise."""
    node = view.producer(name, "Div")
    if node is not None and view.producer(node.input[0], "ReduceSumSquare") is not None:
        return _find_divided(view, node, "ReduceSumSquare")
    mean = find_mean(view, name)
    square = mean and view.producer(mean.source, "Mul", "Pow")
    if mean is None or not square:
        return None
    first, second = square.input
    is_square = first == second if square.op_type == "Mul" else view.scalar(second) == _SQUARE
    return Mean(first, mean.num_axes, [*mean.nodes, square]) if is_square else None


def _find_divided(view: GraphView, division: Any, op_type: str) -> Mean | None:
    """Matches a sum over the last axes that is divided by the number of its terms."""
    total = view.producer(division.input[0], op_type)
    num_axes = _count_last_axes(view, total) if total is not None else 0
    if not num_axes or view.scalar(division.input[1]) != _count(view, total.input[0], num_axes):
        return None
    return Mean(total.input[0], num_axes, [division, total])


def find_inverse_root(view: GraphView, name: str) -> Root | None:
    """Matches the `1 / sqrt(source + epsilon)` that computes a tensor, or returns `None`."""
    node = view.producer(name, "Reciprocal", "Div")
    if node is None or (node.op_type == "Div" and view.scalar(node.input[0]) != 1.0):
        return None
    root = view.producer(node.input[-1], "Sqrt")
    total = root and view.producer(root.input[0], "Add")
    if not total:
        return None
    for source, epsilon in in_both_orders(total):
        number = view.scalar(epsilon)
        if number is not None:
            return Root(source, number, [node, root, total])
    return None


def with_constant(
    view: GraphView, name: str, op_type: str
) -> Iterator[tuple[str, Array | None, list[Any]]]:
    """Yields the ways to read a tensor as another tensor, a constant, and the node that joins them.

    The first is the tensor itself, with neither. Others follow if an `Add` or `Mul` makes it.
    """
    yield name, None, []
    node = view.producer(name, op_type)
    for tensor, other in in_both_orders(node) if node is not None else ():
        constant = view.constant(other)
        if constant is not None:
            yield tensor, constant, [node]


def _write_normalization(
    view: GraphView,
    op_type: str,
    last: Any,
    mean: Mean,
    epsilon: float,
    scale: Array | None,
    bias: Array | None = None,
) -> list[Any] | None:
    """Makes the fused normalization node that computes the output of `last`.

    Returns `None` if the node would compute something else. `mean` holds all nodes that it
    replaces, except `last`.
    """
    sizes = last_sizes(view, mean.source, mean.num_axes)
    if sizes is None or not view.are_only_used_within(mean.nodes, last):
        return None
    float_types = (view.onnx.TensorProto.FLOAT, view.onnx.TensorProto.FLOAT16)
    if view.dtype(mean.source) not in float_types:
        return None  # In float64, runtimes compute the mean in float32.
    dtype = view.onnx.helper.tensor_dtype_to_np_dtype(view.dtype(mean.source))
    rank = len(view.shape(mean.source) or ())
    weights = {"scale": np.ones(sizes, dtype) if scale is None else scale, "bias": bias}
    inputs = [mean.source]
    for name, array in weights.items():
        if array is None:
            continue
        fitted = fit_weight(array, sizes, rank, dtype)
        if fitted is None:
            return None
        inputs.append(view.add_weight(fitted, f"{last.output[0]}__{name}"))
    axis = -mean.num_axes
    return [view.node(op_type, inputs, last.output[0], axis=axis, epsilon=epsilon)]


def fit_weight(array: Array, sizes: list[int], rank: int, dtype: Any) -> Array | None:
    """Reshapes a scale or bias to the `sizes` of the last axes of a tensor of a given rank.

    Returns `None` if it varies along other axes.
    """
    if array.dtype != dtype or array.ndim > rank:
        return None
    extra = array.ndim - len(sizes)
    if extra > 0:
        if any(size != 1 for size in array.shape[:extra]):
            return None
        array = array.reshape(array.shape[extra:])
    try:
        return np.broadcast_to(array, sizes)
    except ValueError:
        return None


def last_sizes(view: GraphView, name: str, num_axes: int) -> list[int] | None:
    """Returns the sizes of a tensor's last axes, or `None` if one of them is free."""
    shape = view.shape(name)
    sizes = shape[-num_axes:] if shape is not None and len(shape) >= num_axes else [None]
    return [int(size) for size in sizes] if all(isinstance(s, int) for s in sizes) else None  # type: ignore[arg-type]


def _count(view: GraphView, name: str, num_axes: int) -> float | None:
    sizes = last_sizes(view, name, num_axes)
    return float(np.prod(sizes)) if sizes is not None else None


def _count_last_axes(view: GraphView, reduction: Any) -> int:
    """Returns the number of axes that a reduction covers if they are the last; otherwise 0."""
    axes: Any = attribute(reduction, "axes")
    if len(reduction.input) > 1 and reduction.input[1]:
        axes = view.constant(reduction.input[1])
    if axes is None or not attribute(reduction, "keepdims", 1):
        return 0
    shape = view.shape(reduction.input[0])
    sorted_axes = sorted(int(axis) for axis in np.ravel(axes))
    if shape is not None:
        sorted_axes = sorted({axis % len(shape) - len(shape) for axis in sorted_axes})
    return len(sorted_axes) if sorted_axes == list(range(-len(sorted_axes), 0)) else 0


def fuse_layer_normalization(view: GraphView) -> int:
    """Replaces exact layer normalizations over the last axes by one operator."""
    return view.rewrite(_fuse_layer, "Add") if view.opset >= _LAYER_OPSET else 0


def _fuse_layer(view: GraphView, last: Any) -> list[Any] | None:
    for scaled, shift in in_both_orders(last):
        product = view.producer(scaled, "Mul")
        if product is None:
            continue
        for shift_product, bias, bias_nodes in with_constant(view, shift, "Add"):
            moved = view.producer(shift_product, "Mul")
            for x, factor in in_both_orders(product) if moved is not None else ():
                fused = _fuse_parts(view, last, x, factor, moved, bias, [product, *bias_nodes])
                if fused is not None:
                    return fused
    return None


def _fuse_parts(
    view: GraphView,
    last: Any,
    x: str,
    factor: str,
    moved: Any,
    bias: Array | None,
    nodes: list[Any],
) -> list[Any] | None:
    """Returns the fused node of `x * factor + (moved + bias)`, or `None`.

    `moved` must be `-mean(x) * factor`.
    """
    for negated, same_factor in in_both_orders(moved):
        negative = view.producer(negated, "Neg")
        if same_factor != factor or negative is None:
            continue
        mean = find_mean(view, negative.input[0])
        if mean is None or mean.source != x:
            continue
        nodes = [*nodes, moved, negative, *mean.nodes]
        for inverse, scale, scale_nodes in with_constant(view, factor, "Mul"):
            deviation = _find_deviation(view, inverse, x, mean.num_axes)
            if deviation is not None:
                epsilon, more = deviation
                mean = mean._replace(nodes=[*nodes, *scale_nodes, *more])
                return _write_normalization(
                    view, "LayerNormalization", last, mean, epsilon, scale, bias
                )
    return None


def _find_deviation(
    view: GraphView, inverse: str, x: str, num_axes: int
) -> tuple[float, list[Any]] | None:
    root = find_inverse_root(view, inverse)
    variance = find_mean_square(view, root.source) if root else None
    difference = view.producer(variance.source, "Sub") if variance else None
    if root is None or variance is None or difference is None or difference.input[0] != x:
        return None
    mean = find_mean(view, difference.input[1])
    if mean is None or mean.source != x or not mean.num_axes == variance.num_axes == num_axes:
        return None
    return root.epsilon, [*root.nodes, *variance.nodes, difference, *mean.nodes]


def fuse_rms_normalization(view: GraphView) -> int:
    """Replaces `x / sqrt(mean(x * x) + epsilon) * scale` over the last axes by one operator."""
    if view.opset < _RMS_OPSET:
        return 0
    used: set[int] = set()

    def fuse(view: GraphView, last: Any) -> list[Any] | None:
        for x, inverse, scale, nodes in _readings(view, last) if id(last) not in used else ():
            fused = _fuse_rms(view, last, x, inverse, scale, nodes)
            if fused is not None:
                used.update(map(id, nodes))
                return fused
        return None

    # Last first: a normalization with its scale is found before the same one without.
    return view.rewrite(fuse, "Mul", last_first=True)


def _readings(view: GraphView, last: Any) -> Iterator[tuple[str, str, Array | None, list[Any]]]:
    """Yields the parts of a scaled normalization: `(x * root) * scale` or `x * (root * scale)`."""
    for first, second in in_both_orders(last):
        scale = view.constant(second)
        product = view.producer(first, "Mul") if scale is not None else None
        for x, inverse in in_both_orders(product) if product is not None else ():
            yield x, inverse, scale, [product]
        for inverse, factor, nodes in with_constant(view, second, "Mul"):
            yield first, inverse, factor, nodes


def _fuse_rms(
    view: GraphView, last: Any, x: str, inverse: str, scale: Array | None, nodes: list[Any]
) -> list[Any] | None:
    root = find_inverse_root(view, inverse)
    square = find_mean_square(view, root.source) if root else None
    if root is None or square is None or square.source != x:
        return None
    square = square._replace(nodes=[*nodes, *root.nodes, *square.nodes])
    return _write_normalization(view, "RMSNormalization", last, square, root.epsilon, scale)
