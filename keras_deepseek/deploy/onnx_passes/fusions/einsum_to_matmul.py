"""A pass that converts an `Einsum` of two tensors to `MatMul` and `Transpose`.

Runtimes lay out the kernel of a `MatMul` for their processor when they load it, and fuse operators
around it. They do neither for an `Einsum`. Keras's attention has six of them a layer.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute

_NUM_OPERANDS = 2


@dataclass(frozen=True)
class _Axes:
    """The axes of a two-tensor `Einsum` by their role, each a letter of the equation."""

    lhs: str
    rhs: str
    output: str
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    summed: tuple[str, ...]
    columns: tuple[str, ...]


def einsum_to_matmul(view: GraphView) -> int:
    """Replaces each `Einsum` that is a product of two tensors by a `MatMul`.

    Returns the number of replacements.
    """
    return view.rewrite(_write_product, "Einsum")


def _write_product(view: GraphView, node: Any) -> list[Any] | None:
    if len(node.input) != _NUM_OPERANDS:
        return None
    equation = attribute(node, "equation").decode().replace(" ", "")
    lhs, rhs = node.input
    constants = [view.constant(name) for name in node.input]
    axes = _sort_axes(equation)
    if (
        axes is not None and constants[0] is not None and constants[1] is None
    ):  # A kernel goes right.
        lhs, rhs = rhs, lhs
        constants.reverse()
        terms, output = equation.split("->")
        axes = _sort_axes(f"{','.join(reversed(terms.split(',')))}->{output}")
    if axes is None:
        return None
    if constants[1] is not None and not axes.batch:
        return _by_kernel(view, node, axes, lhs, rhs, constants[1])
    if len(axes.rows) == len(axes.summed) == len(axes.columns) == 1:
        return _of_two(view, node, axes, lhs, rhs)
    return None


def _sort_axes(equation: str) -> _Axes | None:
    """Returns an equation's axes by role; `None` if it is not a product of two tensors."""
    terms, arrow, output = equation.partition("->")
    lhs, _, rhs = terms.partition(",")
    if not arrow or not (lhs + rhs + output).isalpha():
        return None
    if any(len(set(term)) < len(term) for term in (lhs, rhs, output)):
        return None
    batch = tuple(axis for axis in output if axis in lhs and axis in rhs)
    rows = tuple(axis for axis in output if axis in lhs and axis not in rhs)
    columns = tuple(axis for axis in output if axis in rhs and axis not in lhs)
    summed = tuple(axis for axis in lhs if axis in rhs and axis not in output)
    if set(lhs) != {*batch, *rows, *summed} or set(rhs) != {*batch, *summed, *columns}:
        return None  # An axis is summed in only one of them.
    return _Axes(lhs, rhs, output, batch, rows, summed, columns)


def _by_kernel(
    view: GraphView, node: Any, axes: _Axes, lhs: str, rhs: str, kernel: Any
) -> list[Any] | None:
    """Returns nodes for an `Einsum` with a constant, whose kernel becomes a matrix."""
    if not axes.rows or not axes.summed or not axes.columns:
        return None
    order = [axes.rhs.index(axis) for axis in (*axes.summed, *axes.columns)]
    sizes = [kernel.shape[axis] for axis in order]
    num_summed = len(axes.summed)
    summed, columns = sizes[:num_summed], sizes[num_summed:]
    matrix = kernel.transpose(order).reshape(math.prod(summed), math.prod(columns))
    nodes = _transpose(view, axes.lhs, (*axes.rows, *axes.summed), lhs, f"{node.output[0]}__left")
    name = nodes[-1].output[0] if nodes else lhs
    keep = [0] * len(axes.rows)
    if num_summed > 1:
        nodes.append(_reshape(view, name, [*keep, math.prod(summed)], f"{node.output[0]}__flat"))
        name = nodes[-1].output[0]
    weight = view.add_weight(matrix, rhs)
    nodes.append(view.node("MatMul", [name, weight], f"{node.output[0]}__product"))
    if len(columns) > 1:
        name = f"{node.output[0]}__parted"
        nodes.append(_reshape(view, nodes[-1].output[0], [*keep, *columns], name))
    return _give_output(view, node, axes, (*axes.rows, *axes.columns), nodes)


def _of_two(view: GraphView, node: Any, axes: _Axes, lhs: str, rhs: str) -> list[Any]:
    """Returns nodes for an `Einsum` of two tensors with batch axes and one axis per other role."""
    product_axes = (*axes.batch, *axes.rows, *axes.columns)
    if product_axes != tuple(axes.output) and (*axes.batch, *axes.columns, *axes.rows) == tuple(
        axes.output
    ):
        lhs, rhs = rhs, lhs  # The result is the same, and needs no transposition.
        axes = _Axes(
            axes.rhs, axes.lhs, axes.output, axes.batch, axes.columns, axes.summed, axes.rows
        )
        product_axes = (*axes.batch, *axes.rows, *axes.columns)
    names, nodes = [], []
    for side, name, source_axes, target_axes in (
        ("left", lhs, axes.lhs, (*axes.batch, *axes.rows, *axes.summed)),
        ("right", rhs, axes.rhs, (*axes.batch, *axes.summed, *axes.columns)),
    ):
        transposes = _transpose(view, source_axes, target_axes, name, f"{node.output[0]}__{side}")
        names.append(transposes[0].output[0] if transposes else name)
        nodes += transposes
    nodes.append(view.node("MatMul", names, f"{node.output[0]}__product"))
    return _give_output(view, node, axes, product_axes, nodes)


def _transpose(
    view: GraphView, source_axes: str, target_axes: tuple[str, ...], name: str, output: str
) -> list[Any]:
    order = [source_axes.index(axis) for axis in target_axes]
    if order == sorted(order):
        return []
    return [view.node("Transpose", [name], output, perm=order)]


def _reshape(view: GraphView, name: str, sizes: list[int], output: str) -> Any:
    shape = view.add_weight(np.array(sizes, "int64"), f"shape_{'_'.join(map(str, sizes))}")
    return view.node("Reshape", [name, shape], output)


def _give_output(
    view: GraphView, node: Any, axes: _Axes, product_axes: tuple[str, ...], nodes: list[Any]
) -> list[Any]:
    nodes += _transpose(
        view, "".join(product_axes), tuple(axes.output), nodes[-1].output[0], "after"
    )
    nodes[-1].output[0] = node.output[0]
    return nodes
