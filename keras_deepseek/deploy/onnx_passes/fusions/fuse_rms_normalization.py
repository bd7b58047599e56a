"""A fusion pass for RMS normalization, into ONNX's operator of opset 23."""

from collections.abc import Iterator
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.fusions.normalization_parts import (
    find_inverse_root,
    find_mean_square,
    with_constant,
    write_normalization,
)
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, in_both_orders

_FIRST_OPSET = 23


def fuse_rms_normalization(view: GraphView) -> int:
    """Replaces `x / sqrt(mean(x * x) + epsilon) * scale` over the last axes by one operator.

    Returns the number of replacements.
    """
    if view.opset < _FIRST_OPSET:
        return 0
    used: set[int] = set()

    def fuse(view: GraphView, last: Any) -> list[Any] | None:
        for x, inverse, scale, nodes in _readings(view, last) if id(last) not in used else ():
            fused = _fuse(view, last, x, inverse, scale, nodes)
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


def _fuse(
    view: GraphView, last: Any, x: str, inverse: str, scale: Array | None, nodes: list[Any]
) -> list[Any] | None:
    root = find_inverse_root(view, inverse)
    square = find_mean_square(view, root.source) if root else None
    if root is None or square is None or square.source != x:
        return None
    square = square._replace(nodes=[*nodes, *root.nodes, *square.nodes])
    return write_normalization(view, "RMSNormalization", last, square, root.epsilon, scale)
