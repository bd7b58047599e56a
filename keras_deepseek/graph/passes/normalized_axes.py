"""The axes of a softmax or a normalization."""

from keras_deepseek.graph.ir import Node


def normalized_axes(node: Node) -> list[int]:
    """Returns the axes over which a softmax or a normalization goes, counted from the first."""
    rank, axis = len(node.spec.shape), node.operation.axis
    if axis is None:
        return list(range(rank))
    return [each % rank for each in (axis if isinstance(axis, list | tuple) else [axis])]
