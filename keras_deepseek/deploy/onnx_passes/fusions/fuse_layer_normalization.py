"""A fusion pass for layer normalization, into ONNX's operator of opset 17.

Keras computes it as `x * f + (bias - mean * f)`, where `f` is the scale by the deviation. Runtimes
do not recognize this form, and it reads and writes the tensor eight times.
"""

from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.fusions.normalization_parts import (
    find_inverse_root,
    find_mean,
    find_mean_square,
    with_constant,
    write_normalization,
)
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, in_both_orders

_FIRST_OPSET = 17


def fuse_layer_normalization(view: GraphView) -> int:
    """Replaces exact layer normalizations over the last axes by one operator.

    Returns the number of replacements.
    """
    return view.rewrite(_fuse, "Add") if view.opset >= _FIRST_OPSET else 0


def _fuse(view: GraphView, last: Any) -> list[Any] | None:
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
                return write_normalization(
                    view, "LayerNormalization", last, mean, epsilon, scale, bias
                )
    return None


def _find_deviation(
    view: GraphView, inverse: str, x: str, num_axes: int
) -> tuple[float, list[Any]] | None:
    """Returns the epsilon and the nodes of `1 / sqrt(variance(x) + epsilon)`."""
    root = find_inverse_root(view, inverse)
    variance = find_mean_square(view, root.source) if root else None
    difference = view.producer(variance.source, "Sub") if variance else None
    if root is None or variance is None or difference is None or difference.input[0] != x:
        return None
    mean = find_mean(view, difference.input[1])
    if mean is None or mean.source != x or not mean.num_axes == variance.num_axes == num_axes:
        return None
    return root.epsilon, [*root.nodes, *variance.nodes, difference, *mean.nodes]
