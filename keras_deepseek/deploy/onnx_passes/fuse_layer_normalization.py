"""Keeps a layer normalization as the one operator that ONNX has for it since opset 17.

Keras computes it as `x * f + (bias - mean * f)`, where `f` is the scale by the deviation: a form
that runtimes do not know, and that reads and writes the tensor eight times.
"""

from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, drop_unused, in_both_orders
from keras_deepseek.deploy.onnx_passes.normalization_parts import (
    find_inverse_root,
    find_mean,
    find_mean_square,
    fit_weight,
    last_sizes,
    with_factor,
)

_FIRST_OPSET = 17


def fuse_layer_normalization(model: Any) -> int:
    """Replaces what is exactly a normalization over the last axes, and nothing that is near it.

    Args:
        model: `onnx.ModelProto`, changed in place.

    Returns:
        How many were replaced.
    """
    view = GraphView(model)
    if view.opset < _FIRST_OPSET:
        return 0
    num_replaced = 0
    for node in view.nodes("Add"):
        fused = _fuse(view, node)
        if fused is not None:
            view.replace(node, [fused])
            num_replaced += 1
    drop_unused(model.graph)
    return num_replaced


def _fuse(view: GraphView, last: Any) -> Any:
    for scaled, shift in in_both_orders(last):
        product = view.maker(scaled, "Mul")
        if product is None:
            continue
        for shift_product, bias, bias_nodes in _with_bias(view, shift):
            moved = view.maker(shift_product, "Mul")
            for x, factor in in_both_orders(product) if moved is not None else ():
                fused = _fuse_parts(view, last, x, factor, moved, bias, [product, *bias_nodes])
                if fused is not None:
                    return fused
    return None


def _with_bias(view: GraphView, name: str) -> Any:
    """Yields a tensor by itself, and what it is the sum of with a constant."""
    yield name, None, []
    node = view.maker(name, "Add")
    for tensor, bias in in_both_orders(node) if node is not None else ():
        constant = view.constant(bias)
        if constant is not None:
            yield tensor, constant, [node]


def _fuse_parts(
    view: GraphView,
    last: Any,
    x: str,
    factor: str,
    moved: Any,
    bias: Array | None,
    nodes: list[Any],
) -> Any:
    """Returns the one node for `x * factor + (moved + bias)`, if `moved` is `-mean(x) * factor`."""
    for negated, same_factor in in_both_orders(moved):
        negative = view.maker(negated, "Neg")
        if same_factor != factor or negative is None:
            continue
        mean = find_mean(view, negative.input[0])
        if mean is None or mean.source != x:
            continue
        nodes = [*nodes, moved, negative, *mean.nodes]
        for inverse, scale, scale_nodes in with_factor(view, factor):
            deviation = _find_deviation(view, inverse, x, mean.num_axes)
            if deviation is not None:
                epsilon, more = deviation
                nodes = [*nodes, *scale_nodes, *more]
                return _write(view, last, x, mean.num_axes, epsilon, scale, bias, nodes)
    return None


def _find_deviation(
    view: GraphView, inverse: str, x: str, num_axes: int
) -> tuple[float, list[Any]] | None:
    """Returns the epsilon and the nodes of `1 / sqrt(variance(x) + epsilon)`."""
    root = find_inverse_root(view, inverse)
    variance = find_mean_square(view, root.source) if root else None
    difference = view.maker(variance.source, "Sub") if variance else None
    if root is None or variance is None or difference is None or difference.input[0] != x:
        return None
    mean = find_mean(view, difference.input[1])
    if mean is None or mean.source != x or not mean.num_axes == variance.num_axes == num_axes:
        return None
    return root.epsilon, [*root.nodes, *variance.nodes, difference, *mean.nodes]


def _write(
    view: GraphView,
    last: Any,
    x: str,
    num_axes: int,
    epsilon: float,
    scale: Array | None,
    bias: Array | None,
    nodes: list[Any],
) -> Any:
    sizes = last_sizes(view, x, num_axes)
    if sizes is None or not view.are_inner(nodes, last):
        return None
    known = {view.onnx.TensorProto.FLOAT, view.onnx.TensorProto.FLOAT16}
    if view.dtype(x) not in known:  # In float64, runtimes compute the mean in float32.
        return None
    dtype = view.onnx.helper.tensor_dtype_to_np_dtype(view.dtype(x))
    rank = len(view.shape(x) or ())
    scale = fit_weight(scale, sizes, rank, dtype, 1.0)
    bias_array = None if bias is None else fit_weight(bias, sizes, rank, dtype, 0.0)
    if scale is None or (bias is not None and bias_array is None):
        return None
    inputs = [x, view.add_weight(scale, f"{last.output[0]}__scale")]
    if bias_array is not None:
        inputs.append(view.add_weight(bias_array, f"{last.output[0]}__bias"))
    return view.node("LayerNormalization", inputs, last.output[0], axis=-num_axes, epsilon=epsilon)
