"""A pass that reads sizes by a `Shape` of the wanted axes instead of computing them.

TensorFlow takes all sizes of a tensor in int32, picks some, and concatenates them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView
from keras_deepseek.deploy.onnx_passes.shape_values import Size, read_shape

_FIRST_OPSET = 15
"""The opset since which `Shape` has a start and an end."""

_INDIRECT = ("Cast", "Slice", "Gather")

_NamesBySizes = dict[tuple[Size, ...], str]


def simplify_sizes(view: GraphView) -> int:
    """Replaces computed sizes of `Reshape`, `Expand` and `Slice` by sizes read from a shape.

    Returns the number of replacements. A `Slice` loses the axes that it takes whole.
    """
    if view.opset < _FIRST_OPSET:
        return 0
    names_by_sizes: _NamesBySizes = {}
    return view.rewrite(
        lambda view, node: _replace(view, node, names_by_sizes), "Reshape", "Expand", "Slice"
    )


def _replace(view: GraphView, node: Any, names_by_sizes: _NamesBySizes) -> list[Any] | None:
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
        new, name = _write(view, sizes or [], f"{node.output[0]}__{index}", names_by_sizes)
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
    shape: list[int | str | None],
    starts: Any,
    ends: Any,
    axes: Any = None,
    steps: Any = None,
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


def _write(
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
    """Groups sizes into runs, each of which is one constant or one `Shape` node."""
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
