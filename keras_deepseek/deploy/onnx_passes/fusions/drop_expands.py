"""A pass that removes `Expand` before operators that broadcast anyway.

Positions, for instance, are repeated for each row of a batch, and then added to embeddings of that
shape.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute
from keras_deepseek.deploy.onnx_passes.shape_values import Size, read_shape

_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "And", "Or", "Xor"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)


def drop_expands(view: GraphView) -> int:
    """Replaces `Expand(x, sizes)` by `x` if another input of the operator has these sizes.

    Returns the number of replacements.
    """
    return view.rewrite(_read_plain, *_BROADCASTING)


def _read_plain(view: GraphView, node: Any) -> list[Any] | None:
    names = list(node.input)
    for index, name in enumerate(node.input):
        expand = view.producer(name, "Expand")
        other_names = [*names[:index], *names[index + 1 :]]
        if expand is not None and any(
            _has(view, other_name, expand.input[1]) for other_name in other_names
        ):
            names[index] = expand.input[0]
    if names == list(node.input):
        return None
    new = view.node(node.op_type, names, node.output[0])
    new.attribute.extend(node.attribute)
    return [new]


def _has(view: GraphView, name: str, sizes_name: str) -> bool:
    """Returns True if broadcasting a tensor to given sizes leaves its shape unchanged."""
    shape, sizes = view.shape(name), read_shape(view, sizes_name)
    if shape is None or sizes is None or len(sizes) > len(shape):
        return False
    axes = range(len(shape) - len(sizes), len(shape))
    return all(
        size in (1, shape[axis]) or _find_source(view, size) == _find_source(view, (name, axis))
        for axis, size in zip(axes, sizes, strict=True)
    )


def _find_source(view: GraphView, size: Size) -> Size:
    """Follows a size back through nodes to the tensor and axis that it comes from."""
    while not isinstance(size, int):
        name, axis = size
        node = view.producer(name, "Cast", "Not", "Equal", "Gather")
        if node is None:
            break
        source = node.input[0]
        if node.op_type == "Equal" and view.scalar(node.input[1]) is None:
            break
        if node.op_type == "Gather":
            source = node.input[1]
            if attribute(node, "axis", 0) != 0:
                break
        rank = len(view.shape(source) or ())
        if axis >= rank or (node.op_type != "Gather" and rank != len(view.shape(name) or ())):
            break
        size = (source, axis)
    return size
