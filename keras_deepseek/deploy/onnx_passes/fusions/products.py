"""Passes that write products of tensors as runtimes compute them fastest.

Runtimes lay out the kernel of a `MatMul` for their processor when they load it, and fuse operators
around it. They do neither for an `Einsum`. Keras's attention has six of them a layer, computes its
scores with the keys first, and divides its queries by the root of their size. TensorFlow's
`tensordot` flattens its input to a matrix, and reshapes the product by a shape that it computes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.fusions.sizes import read_shape
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute, in_both_orders

_NUM_OPERANDS = 2
_MATRIX = 2
_LEAST = float(np.finfo("float32").tiny)


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
    """Replaces each `Einsum` that is a product of two tensors by a `MatMul`."""
    return view.rewrite(_write_product, "Einsum")


def _write_product(view: GraphView, node: Any) -> list[Any] | None:
    """Returns the `MatMul`, and the nodes around it, that compute an `Einsum` of two tensors."""
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


def drop_flattening(view: GraphView) -> int:
    """Replaces `Reshape(MatMul(Reshape(x), kernel))` by an equal `MatMul(x, kernel)`."""
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
    """Returns True if `node` restores the leading axes that the `Reshape` `flat` has merged."""
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


def transpose_products(view: GraphView) -> int:
    """Replaces `Transpose(MatMul(a, b))` if `a` or `b` is itself a `Transpose`.

    The factors of attention scores are smaller than these, and transposed anyway.
    """
    return view.rewrite(_turn_product, "Transpose")


def _turn_product(view: GraphView, node: Any) -> list[Any] | None:
    """Returns the product of the transposed factors in reverse order, with their `Transpose`s."""
    order = list(attribute(node, "perm", []))
    product = view.producer(node.input[0], "MatMul")
    if product is None or view.num_users(product.output[0]) != 1 or order != _turn(len(order)):
        return None
    factors = [(name, view.producer(name, "Transpose")) for name in product.input]
    ranks = [len(view.shape(name) or ()) for name, _ in factors]
    if ranks != [len(order)] * 2 or not any(transpose for _, transpose in factors):
        return None
    transposes: list[Any] = []
    names: list[str] = []
    for name, factor in reversed(factors):
        source, permutation = name, list(range(len(order)))
        if factor is not None:
            source = factor.input[0]
            permutation = list(attribute(factor, "perm", list(reversed(permutation))))
        turned = [permutation[axis] for axis in order]
        names.append(f"{node.output[0]}__{len(names)}" if turned != sorted(turned) else source)
        if names[-1] != source:
            transposes.append(view.node("Transpose", [source], names[-1], perm=turned))
    return [*transposes, view.node("MatMul", names, node.output[0])]


def _turn(rank: int) -> list[int]:
    axes = list(range(rank))
    return [*axes[:-2], *reversed(axes[-2:])]


def fold_scales(view: GraphView) -> int:
    """Replaces `MatMul(x, kernel) * number` by a product with a scaled kernel.

    A bias, `Reshape` or `Transpose` may stand in between. Only float32 is changed. A power of two
    changes no digit; another number rounds each weight once more.
    """
    return view.rewrite(_scale, "Mul", "Div")


def _scale(view: GraphView, node: Any) -> list[Any] | None:
    """Returns copies of the nodes up to the product, with the kernel and all biases scaled."""
    tensor, factor = _find_factor(view, node)
    chain = _find_chain(view, tensor) if factor is not None else None
    if factor is None or not chain:
        return None
    nodes: list[Any] = []
    for chain_node, index in reversed(chain):
        inputs = list(chain_node.input)
        if nodes:
            inputs[index] = nodes[-1].output[0]
        if chain_node.op_type in ("MatMul", "Add"):
            scaled = _add_scaled(view, inputs[1 - index], factor)
            if scaled is None:
                return None
            inputs[1 - index] = scaled
        nodes.append(view.node(chain_node.op_type, inputs, f"{chain_node.output[0]}__scaled"))
        nodes[-1].attribute.extend(chain_node.attribute)
    nodes[-1].output[0] = node.output[0]
    return nodes


def _find_factor(view: GraphView, node: Any) -> tuple[str, float | None]:
    if node.op_type == "Div":
        pairs, power = [tuple(node.input)], -1.0
    else:
        pairs, power = list(in_both_orders(node)), 1.0
    for tensor, name in pairs:
        number, array = view.scalar(name), view.constant(name)
        if number and array is not None and array.ndim <= len(view.shape(tensor) or ()):
            return tensor, number**power
    return "", None


def _find_chain(view: GraphView, name: str) -> list[tuple[Any, int]] | None:
    """Returns the nodes from a tensor back to the `MatMul` with a kernel.

    Each comes with the index of the input that was followed.
    """
    chain = []
    while view.num_users(name) == 1 and view.dtype(name) == view.onnx.TensorProto.FLOAT:
        node = view.producer(name, "MatMul", "Add", "Reshape", "Transpose")
        if node is None:
            return None
        index = 0
        if node.op_type == "Add" and view.constant(node.input[0]) is not None:
            index = 1
        chain.append((node, index))
        if node.op_type == "MatMul":
            kernel = view.constant(node.input[1])
            is_own = view.num_users(node.input[1]) == 1
            return chain if kernel is not None and kernel.ndim == _MATRIX and is_own else None
        name = node.input[index]
    return None


def _add_scaled(view: GraphView, name: str, factor: float) -> str | None:
    """Adds a scaled weight and returns its name; `None` if scaling overflows or loses precision."""
    array = view.constant(name)
    if array is None or array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        scaled = (array.astype("float64") * factor).astype("float32")
    if not np.isfinite(scaled).all() or (np.abs(scaled[array != 0]) < _LEAST).any():
        return None
    return view.add_weight(scaled, f"{name}__scaled")
