"""A pass that reads sizes of attention scores from queries or keys instead of the scores.

A use of the scores' shape keeps runtimes from fusing them with the softmax.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView
from keras_deepseek.deploy.onnx_passes.shape_values import read_shape

_LEAST_RANK = 2
_FIRST_OPSET = 15
"""The opset since which `Shape` has a start and an end."""


def sizes_from_factors(view: GraphView) -> int:
    """Replaces the size of a product's last two axes by the same size read from a factor.

    Returns the number of replacements.
    """
    return 0 if view.opset < _FIRST_OPSET else view.rewrite(_ask_factor, "Slice", "Gather")


def _ask_factor(view: GraphView, node: Any) -> list[Any] | None:
    sizes = read_shape(view, node.input[0]) and read_shape(view, node.output[0])
    if not sizes or len(sizes) != 1 or view.shape(node.output[0]) != [1]:
        return None
    factor = _find_factor(view, sizes[0])
    dtype = view.dtype(node.output[0])
    if factor is None or not dtype:
        return None
    name, axis = factor
    size = f"{node.output[0]}__size"
    return [
        view.node("Shape", [name], size, start=axis, end=axis + 1),
        view.node("Cast", [size], node.output[0], to=dtype),
    ]


def _find_factor(view: GraphView, size: Any) -> tuple[str, int] | None:
    """Returns the factor of a `MatMul` that has a size of the product, and the factor's axis."""
    if isinstance(size, int):
        return None
    name, axis = size
    scaled = view.producer(name, "Mul", "Div")
    if scaled is not None and view.scalar(scaled.input[1]) is not None:
        name = scaled.input[0]
    product = view.producer(name, "MatMul")
    ranks = (
        {len(view.shape(factor) or ()) for factor in product.input} if product is not None else {0}
    )
    (rank, *other_ranks) = ranks
    if other_ranks or rank < _LEAST_RANK or axis not in (rank - 2, rank - 1):
        return None
    return str(product.input[0 if axis == rank - 2 else 1]), axis
