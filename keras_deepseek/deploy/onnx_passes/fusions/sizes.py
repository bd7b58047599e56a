"""Passes on tensors that hold a shape, read as numbers or as axes of other tensors.

TensorFlow takes all sizes of a tensor in int32, picks some, and concatenates them. Keras repeats
positions for each row of a batch before it adds them to embeddings of that shape.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute

Size = int | tuple[str, int]
"""A number, or a tensor and its axis of this size."""

_MAX_INT32 = 2**31 - 1

_LEAST_RANK = 2
_FIRST_OPSET = 15
"""The opset since which `Shape` has a start and an end."""

_INDIRECT = ("Cast", "Slice", "Gather")

_NamesBySizes = dict[tuple[Size, ...], str]

_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Where", "And", "Or", "Xor"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
)


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
    return None if sizes is None else _select_sizes(view, node, sizes)


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


def _select_sizes(view: GraphView, node: Any, sizes: list[Size]) -> list[Size] | None:
    """Returns the sizes that a `Gather` or `Slice` takes from a list; `None` if unknown."""
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


def sizes_from_factors(view: GraphView) -> int:
    """Replaces the size of a product's last two axes by the same size read from a factor.

    A use of the shape of attention scores keeps runtimes from fusing them with the softmax.
    """
    return 0 if view.opset < _FIRST_OPSET else view.rewrite(_ask_factor, "Slice", "Gather")


def _ask_factor(view: GraphView, node: Any) -> list[Any] | None:
    sizes = read_shape(view, node.input[0]) and read_shape(view, node.output[0])
    if not sizes or len(sizes) != 1 or view.shape(node.output[0]) != [1]:
        return None
    factor = _find_factor_of_size(view, sizes[0])
    dtype = view.dtype(node.output[0])
    if factor is None or not dtype:
        return None
    name, axis = factor
    size = f"{node.output[0]}__size"
    return [
        view.node("Shape", [name], size, start=axis, end=axis + 1),
        view.node("Cast", [size], node.output[0], to=dtype),
    ]


def _find_factor_of_size(view: GraphView, size: Any) -> tuple[str, int] | None:
    """Returns the factor of a product, and its axis, that has the size of the product's axis."""
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


def simplify_sizes(view: GraphView) -> int:
    """Replaces computed sizes of `Reshape`, `Expand` and `Slice` by sizes read from a shape.

    A `Slice` loses the axes that it takes whole.
    """
    if view.opset < _FIRST_OPSET:
        return 0
    names_by_sizes: _NamesBySizes = {}
    return view.rewrite(
        lambda view, node: _simplify(view, node, names_by_sizes), "Reshape", "Expand", "Slice"
    )


def _simplify(view: GraphView, node: Any, names_by_sizes: _NamesBySizes) -> list[Any] | None:
    """Returns the node with sizes read from shapes; `None` if they are unknown or read already."""
    data, *names = node.input
    read: Sequence[list[Size] | None] = [read_shape(view, name) for name in names]
    shape = view.shape(data)
    if shape is None or None in read or not any(_is_indirect(view, name) for name in names):
        return None
    if node.op_type == "Slice":
        read = _without_whole_axes(shape, *read)
        if not read[0]:
            return None
    nodes, inputs = [], [data]
    for index, sizes in enumerate(read):
        new, name = _write_sizes(view, sizes or [], f"{node.output[0]}__{index}", names_by_sizes)
        nodes += new
        inputs.append(name)
    nodes.append(view.node(node.op_type, inputs, node.output[0]))
    nodes[-1].attribute.extend(node.attribute)
    return nodes


def _is_indirect(view: GraphView, name: str) -> bool:
    node = view.producer(name, "Concat", *_INDIRECT)
    if node is None:
        return False
    return node.op_type in _INDIRECT or any(
        _is_indirect(view, input_name) for input_name in node.input
    )


def _without_whole_axes(
    shape: list[int | str | None], starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> list[list[Size]]:
    """Returns the starts, ends, axes and steps of a `Slice` without axes that it takes whole."""
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    slices = [
        (start, end, axis, step)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
        if (start, step) != (0, 1) or not _is_end(shape[axis], end)
    ]
    return [list(column) for column in zip(*slices, strict=True)] or [[]]


def _is_end(size: int | str | None, end: Size) -> bool:
    return isinstance(size, int) and isinstance(end, int) and end >= size


def _write_sizes(
    view: GraphView, sizes: list[Size], like: str, names_by_sizes: _NamesBySizes
) -> tuple[list[Any], str]:
    """Returns the nodes that compute a tensor of given sizes, and the tensor's name."""
    if tuple(sizes) in names_by_sizes:
        return [], names_by_sizes[tuple(sizes)]
    nodes: list[Any] = []
    names = []
    for run in _join_runs(sizes):
        if isinstance(run[0], int):
            names.append(view.add_weight(np.array(run, "int64"), "sizes"))
            continue
        (tensor, first), names = run[0], [*names, f"{like}_{len(names)}"]
        nodes.append(view.node("Shape", [tensor], names[-1], start=first, end=first + len(run)))
    if len(names) > 1:
        nodes.append(view.node("Concat", names, f"{like}_joined", axis=0))
        names = [f"{like}_joined"]
    names_by_sizes[tuple(sizes)] = names[0]
    return nodes, names[0]


def _join_runs(sizes: list[Size]) -> list[list[Size]]:
    """Groups sizes that one node can give: numbers, or neighbouring axes of one tensor."""
    runs: list[list[Size]] = []
    for size in sizes:
        previous = runs[-1][-1] if runs else None
        if isinstance(size, int):
            goes_on = isinstance(previous, int)
        else:
            goes_on = isinstance(previous, tuple) and (previous[0], previous[1] + 1) == size
        if goes_on:
            runs[-1].append(size)
        else:
            runs.append([size])
    return runs


def drop_expands(view: GraphView) -> int:
    """Replaces `Expand(x, sizes)` by `x` if another input of the operator has these sizes."""
    return view.rewrite(_without_expands, *_BROADCASTING)


def _without_expands(view: GraphView, node: Any) -> list[Any] | None:
    names = list(node.input)
    for index, name in enumerate(node.input):
        expand = view.producer(name, "Expand")
        other_names = [*names[:index], *names[index + 1 :]]
        if expand is not None and any(
            _has_sizes(view, other_name, expand.input[1]) for other_name in other_names
        ):
            names[index] = expand.input[0]
    if names == list(node.input):
        return None
    new = view.node(node.op_type, names, node.output[0])
    new.attribute.extend(node.attribute)
    return [new]


def _has_sizes(view: GraphView, name: str, sizes_name: str) -> bool:
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
