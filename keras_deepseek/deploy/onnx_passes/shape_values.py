"""Readers of tensors that hold a shape, as numbers or as axes of other tensors."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute

Size = int | tuple[str, int]
"""A number, or a tensor and its axis of this size."""

_MAX_INT32 = 2**31 - 1


def read_shape(view: GraphView, name: str) -> list[Size] | None:
    """Returns the sizes that a one-dimensional integer tensor holds; `None` if unknown."""
    constant = view.constant(name)
    if constant is not None:
        return [int(size) for size in np.ravel(constant)] if constant.dtype.kind == "i" else None
    node = view.producer(name, "Concat", "Cast", "Shape", "Gather", "Slice")
    if node is None:
        return None
    if node.op_type == "Concat":
        parts = [read_shape(view, input_name) for input_name in node.input]
        return None if None in parts else [size for part in parts for size in part or ()]
    if node.op_type == "Cast":
        return read_shape(view, node.input[0])
    if node.op_type == "Shape":
        return _read_axes(view, node)
    sizes = read_shape(view, node.input[0])
    return None if sizes is None else _choose(view, node, sizes)


def read_repeated(view: GraphView, name: str, like: str) -> Array | None:
    """Returns the constant that a tensor broadcasts to another tensor's shape, or `None`."""
    expand = view.producer(name, "Expand")
    value = view.constant(expand.input[0]) if expand is not None else None
    if expand is None or value is None or value.size != 1:
        return None
    sizes, shape = read_shape(view, expand.input[1]), view.shape(like)
    if sizes is None or shape is None or len(sizes) != len(shape):
        return None
    pairs = enumerate(zip(sizes, shape, strict=True))
    return (
        value if all(new_size in (size, (like, axis)) for axis, (new_size, size) in pairs) else None
    )


def _read_axes(view: GraphView, node: Any) -> list[Size] | None:
    shape = view.shape(node.input[0])
    if shape is None:
        return None
    sizes: list[Size] = [
        size if isinstance(size, int) else (node.input[0], axis) for axis, size in enumerate(shape)
    ]
    return sizes[attribute(node, "start", 0) : attribute(node, "end", len(shape))]


def _choose(view: GraphView, node: Any, sizes: list[Size]) -> list[Size] | None:
    """Returns the sizes that a `Gather` or `Slice` node selects from a list of sizes."""
    numbers = [view.constant(name) for name in node.input[1:]]
    if any(array is None or array.size != 1 for array in numbers) and node.op_type == "Slice":
        return None
    if node.op_type == "Gather":
        (indices,) = numbers
        if indices is None or any(not -len(sizes) <= index < len(sizes) for index in indices.flat):
            return None
        return [sizes[int(index)] for index in indices.flat]
    start, end, *axis_and_step = (int(array.reshape(())) for array in numbers if array is not None)
    if axis_and_step[1:] not in ([], [1]):
        return None
    return sizes[start if abs(start) <= _MAX_INT32 else 0 : end]
