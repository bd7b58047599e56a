"""Keeps a normalization by the root mean square as one operator, which ONNX has since opset 23."""

from collections.abc import Iterator
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, drop_unused, in_both_orders
from keras_deepseek.deploy.onnx_passes.normalization_parts import (
    find_inverse_root,
    find_mean_square,
    fit_weight,
    last_sizes,
    with_factor,
)

_FIRST_OPSET = 23


def fuse_rms_normalization(model: Any) -> int:
    """Replaces `x / sqrt(mean(x * x) + epsilon) * scale` over the last axes.

    Args:
        model: `onnx.ModelProto`, changed in place.

    Returns:
        How many were replaced.
    """
    view = GraphView(model)
    if view.opset < _FIRST_OPSET:
        return 0
    num_replaced = 0
    used: set[int] = set()
    for node in reversed(view.nodes("Mul")):  # With its scale before it is found without.
        if id(node) in used:
            continue
        for x, inverse, scale, nodes in _readings(view, node):
            fused = _fuse(view, node, x, inverse, scale, nodes)
            if fused is not None:
                view.replace(node, [fused])
                used |= {id(each) for each in nodes}
                num_replaced += 1
                break
    drop_unused(model.graph)
    return num_replaced


def _readings(view: GraphView, last: Any) -> Iterator[tuple[str, str, Array | None, list[Any]]]:
    """Yields `(x * root) * scale` and `x * (root * scale)` as their parts."""
    for first, second in in_both_orders(last):
        scale = view.constant(second)
        product = view.maker(first, "Mul") if scale is not None else None
        for x, inverse in in_both_orders(product) if product is not None else ():
            yield x, inverse, scale, [product]
        for inverse, factor, nodes in with_factor(view, second):
            yield first, inverse, factor, nodes


def _fuse(
    view: GraphView, last: Any, x: str, inverse: str, scale: Array | None, nodes: list[Any]
) -> Any:
    root = find_inverse_root(view, inverse)
    square = find_mean_square(view, root.source) if root else None
    if root is None or square is None or square.source != x:
        return None
    if not view.are_inner([*nodes, *root.nodes, *square.nodes], last):
        return None
    sizes = last_sizes(view, x, square.num_axes)
    types = view.onnx.TensorProto
    if sizes is None or view.dtype(x) not in (types.FLOAT, types.FLOAT16):
        return None
    dtype = view.onnx.helper.tensor_dtype_to_np_dtype(view.dtype(x))
    weight = fit_weight(scale, sizes, len(view.shape(x) or ()), dtype, 1.0)
    if weight is None:
        return None
    inputs = [x, view.add_weight(weight, f"{last.output[0]}__scale")]
    axis = -square.num_axes
    return view.node("RMSNormalization", inputs, last.output[0], axis=axis, epsilon=root.epsilon)
