"""A pass that multiplies tensors by a kernel without flattening them to matrices first.

TensorFlow's `tensordot` flattens its input to a matrix, and reshapes the product by a shape that it
computes. `MatMul` needs neither, and runtimes fuse it with the operators after it.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView
from keras_deepseek.deploy.onnx_passes.shape_values import read_shape

_MATRIX = 2


def drop_flattening(view: GraphView) -> int:
    """Replaces `Reshape(MatMul(Reshape(x), kernel))` by an equal `MatMul(x, kernel)`.

    Returns the number of replacements.
    """
    return view.rewrite(_multiply, "Reshape")


def _multiply(view: GraphView, node: Any) -> list[Any] | None:
    product = view.producer(node.input[0], "MatMul")
    flat = view.producer(product.input[0], "Reshape") if product is not None else None
    if flat is None or view.num_users(product.output[0]) != 1:
        return None
    if not _is_same(view, node, product, flat):
        return None
    return [view.node("MatMul", [flat.input[0], product.input[1]], node.output[0])]


def _is_same(view: GraphView, node: Any, product: Any, flat: Any) -> bool:
    x = flat.input[0]
    shape, kernel = view.shape(x), view.shape(product.input[1])
    if shape is None or kernel is None or len(kernel) != _MATRIX or len(shape) <= _MATRIX:
        return False
    if view.constant(product.input[1]) is None or shape[-1] != kernel[0]:
        return False
    if read_shape(view, flat.input[1]) != [-1, kernel[0]]:
        return False
    sizes = read_shape(view, node.input[1])
    if sizes is None or len(sizes) != len(shape) or sizes[-1] != kernel[1]:
        return False
    unknown = sizes.count(-1)
    return all(
        new_size in (size, (x, axis)) or (new_size == -1 and unknown == 1)
        for axis, (new_size, size) in enumerate(zip(sizes[:-1], shape[:-1], strict=True))
    )
