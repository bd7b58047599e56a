"""Products of matrices and tensors as ONNX nodes.

Integers are multiplied in a dtype that ONNX Runtime has kernels for, and wrap around as in Keras.
"""

import math
import string
from collections.abc import Sequence
from typing import Any

from keras_deepseek.deploy.onnx_writer.table.operand import (
    Operand,
    as_operand,
    computed_in,
    shape_of,
)
from keras_deepseek.deploy.onnx_writer.table.shapes import moved
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node, Value

MATRIX_RANK = 2
PAIR = 2
VECTOR_SIZE = 3


def _rank(argument: Any) -> int:
    return len(shape_of(argument))


def _operands(writer: Writer, node: Node, *arguments: Any) -> list[Operand]:
    """Returns the arguments in a dtype that products are computed in."""
    dtype = computed_in(node.spec.dtype)
    return [as_operand(writer, argument, dtype) for argument in arguments]


@handles("Matmul", follows="JAX and PyTorch: integers wrap around")
def _matmul(writer: Writer, node: Node, x: Any, y: Any) -> str:
    x_operand, y_operand = _operands(writer, node, x, y)
    return x_operand.apply("MatMul", y_operand).cast(node.spec.dtype).name


@handles(
    "Dot",
    "Inner",
    follows={
        "Dot": "JAX: integers wrap around, one axis of each tensor is summed",
        "Inner": "JAX: integers wrap around",
    },
)
def _inner(writer: Writer, node: Node, x: Any, y: Any) -> str:
    """Writes the sums over the last axis of x, and the last of y or, for `Dot`, the one before."""
    x_rank, y_rank = _rank(x), _rank(y)
    if not x_rank or not y_rank:
        x_operand, y_operand = _operands(writer, node, x, y)
        return (x_operand * y_operand).cast(node.spec.dtype).name
    is_dot = node.kind == "Dot"
    if is_dot and y_rank <= MATRIX_RANK:
        return _matmul(writer, node, x, y)
    return _contract(writer, node, x, y, [x_rank - 1], [y_rank - 1 - is_dot])


@handles("Tensordot", follows="JAX and TensorFlow: integers wrap around")
def _tensordot(writer: Writer, node: Node, x: Any, y: Any) -> str:
    axes, rank = node.operation.axes, _rank(x)
    if isinstance(axes, int):
        return _contract(writer, node, x, y, range(rank - axes, rank), range(axes))
    x_axes, y_axes = ([axis] if isinstance(axis, int) else axis for axis in axes)
    return _contract(writer, node, x, y, x_axes, y_axes)


def _contract(
    writer: Writer, node: Node, x: Any, y: Any, x_axes: Sequence[int], y_axes: Sequence[int]
) -> str:
    """Writes the sums over pairs of axes; the output has x's other axes first."""
    x_labels = list(string.ascii_letters[: _rank(x)])
    y_labels = list(string.ascii_letters[_rank(x) : _rank(x) + _rank(y)])
    output = "".join(
        label
        for labels, axes in ((x_labels, x_axes), (y_labels, y_axes))
        for axis, label in enumerate(labels)
        if axis not in [summed % len(labels) for summed in axes]
    )
    for x_axis, y_axis in zip(x_axes, y_axes, strict=True):
        y_labels[y_axis] = x_labels[x_axis]
    return _product_of(writer, node, ["".join(x_labels), "".join(y_labels)], output, [x, y])


@handles("Vdot", "Outer", follows={"Vdot": "JAX: integers wrap around"})
def _flat_product(writer: Writer, node: Node, x: Any, y: Any) -> str:
    """Writes the sum of the products of all pairs, or the product of each number with each."""
    kind, x_sizes, y_sizes = {
        "Vdot": ("MatMul", [-1], [-1]),
        "Outer": ("Mul", [-1, 1], [1, -1]),
    }[node.kind]
    x_operand, y_operand = _operands(writer, node, x, y)
    x_flat, y_flat = x_operand.reshape(*x_sizes), y_operand.reshape(*y_sizes)
    return x_flat.apply(kind, y_flat).cast(node.spec.dtype).name


@handles("Kron")
def _kron(writer: Writer, node: Node, x: Value, y: Value) -> str:
    """Writes the products of each number of x with all of y, block by block."""
    rank = _rank(x)
    if rank != _rank(y):
        raise NoEntryError("Kron of tensors of several ranks")
    x_operand, y_operand = _operands(writer, node, x, y)
    x_spread = x_operand.unsqueeze(*range(1, 2 * rank, 2))
    blocks = x_spread * y_operand.unsqueeze(*range(0, 2 * rank, 2))
    pairs = zip(writer.sizes_of(x), writer.sizes_of(y), strict=True)
    name = writer.reshape(blocks.name, [_product(writer, pair) for pair in pairs])
    return writer.cast(name, blocks.dtype, node.spec.dtype)


def _product(writer: Writer, sizes: Sequence[int | str]) -> int | str:
    """Returns the product of sizes: an int, or the name of a tensor of shape [1]."""
    if all(not isinstance(size, str) for size in sizes):
        return math.prod(int(size) for size in sizes)
    name = writer.size(sizes[0])
    for size in sizes[1:]:
        name = writer.add("Mul", name, writer.size(size))
    return name


@handles("Cross", follows="JAX and TensorFlow: vectors lie in the last axis")
def _cross(writer: Writer, node: Node, x: Value, y: Value) -> str:
    """Writes `x[1, 2, 0] y[2, 0, 1] - x[2, 0, 1] y[1, 2, 0]` of vectors of three numbers."""
    op = node.operation
    if x.shape[op.axisa] != VECTOR_SIZE or y.shape[op.axisb] != VECTOR_SIZE:
        raise NoEntryError("Cross of vectors of two numbers")
    x_operand, y_operand = _operands(writer, node, x, y)
    x_vector = writer.transpose(x_operand.name, moved(_rank(x), [op.axisa], [-1]))
    y_vector = writer.transpose(y_operand.name, moved(_rank(y), [op.axisb], [-1]))

    def turn(name: str, order: list[int]) -> Operand:
        turned = writer.add("Gather", name, writer.integers(*order), axis=-1)
        return Operand(writer, turned, x_operand.dtype)

    forward = turn(x_vector, [1, 2, 0]) * turn(y_vector, [2, 0, 1])
    backward = turn(x_vector, [2, 0, 1]) * turn(y_vector, [1, 2, 0])
    order = moved(len(node.spec.shape), [-1], [op.axisc])
    return writer.transpose((forward - backward).cast(node.spec.dtype).name, order)


@handles("CDist")
def _distances(writer: Writer, node: Node, x: Any, y: Any) -> str:
    """Writes the distances of each row of x from each of y."""
    x_rows, y_rows = _operands(writer, node, x, y)
    difference = x_rows.unsqueeze(-2) - y_rows.unsqueeze(-3)
    return (difference * difference).reduce("ReduceSum", [-1]).apply("Sqrt").name


# Einstein sums.


@handles("Einsum", follows="JAX and PyTorch: integers wrap around, sizes of 1 are repeated")
def _einsum(writer: Writer, node: Node, *operands: Any, **_: Any) -> str:
    terms, output = _spell_out(node.operation.subscripts, [_rank(operand) for operand in operands])
    return _product_of(writer, node, terms, output, operands)


def _spell_out(subscripts: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Returns the labels of the operands and the output, with letters for an ellipsis."""
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = inputs.split(",")
    hidden = [
        rank - len(term) + 3 if "..." in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    unused = [letter for letter in string.ascii_letters if letter not in subscripts]
    ellipsis = "".join(unused[: max(hidden)])
    if not arrow:
        labels = [label for label in inputs if label.isalpha()]
        once = sorted(label for label in labels if labels.count(label) == 1)
        output = "..." * ("..." in inputs) + "".join(once)
    return [
        term.replace("...", ellipsis[len(ellipsis) - count :])
        for term, count in zip(terms, hidden, strict=True)
    ], output.replace("...", ellipsis)


def _product_of(
    writer: Writer, node: Node, terms: Sequence[str], output: str, arguments: Sequence[Any]
) -> str:
    """Writes an Einstein sum; that of two tensors as `MatMul`, between transpositions."""
    if not _is_matmul(terms, output, arguments):
        first, *others = _operands(writer, node, *arguments)
        result = first.apply("Einsum", *others, equation=f"{','.join(terms)}->{output}")
        return result.cast(node.spec.dtype).name
    (x_labels, y_labels), (x, y) = terms, arguments
    batch = [label for label in output if label in x_labels and label in y_labels]
    summed = [label for label in x_labels if label in y_labels and label not in output]
    rows = [label for label in x_labels if label not in y_labels]
    columns = [label for label in y_labels if label not in x_labels]
    if writer.array(y) is None and rows and columns and list(output) == batch + columns + rows:
        # The other way round, the product needs no transposition.
        return _product_of(writer, node, [y_labels, x_labels], output, [y, x])
    sizes = {
        label: writer.axis_size(argument, axis)
        for labels, argument in ((y_labels, y), (x_labels, x))
        for axis, label in enumerate(labels)
    }

    def arrange(
        operand: Operand, labels: str, stack: Sequence[str], groups: Sequence[Sequence[str]]
    ) -> Operand:
        """Returns the operand with the axes of each group as one, behind those of the stack."""
        order = [*stack, *(label for group in groups for label in group)]
        name = writer.transpose(operand.name, [labels.index(label) for label in order])
        if any(len(group) != 1 for group in groups):
            merged = [_product(writer, [sizes[label] for label in group]) for group in groups]
            name = writer.reshape(name, [*[0] * len(stack), *merged])
        return Operand(writer, name, operand.dtype)

    # Without a batch, x may be a stack of matrices or vectors.
    stack, merged_rows = (batch, [rows]) if batch else (rows, [])
    x_operand, y_operand = _operands(writer, node, x, y)
    x_matrix = arrange(x_operand, x_labels, stack, [*merged_rows, summed])
    y_matrix = arrange(y_operand, y_labels, batch, [summed, columns])
    result = x_matrix.apply("MatMul", y_matrix)
    name = result.name
    if any(len(group) != 1 for group in [*merged_rows, columns]):
        split = [label for group in [*merged_rows, columns] for label in group]
        name = writer.reshape(name, [*[0] * len(stack), *(sizes[label] for label in split)])
    order = batch + rows + columns
    name = writer.transpose(name, [order.index(label) for label in output])
    return writer.cast(name, result.dtype, node.spec.dtype)


def _is_matmul(terms: Sequence[str], output: str, arguments: Sequence[Any]) -> bool:
    """Returns whether each label is once in a term, of one size, and summed in both or neither."""
    if len(terms) != PAIR:
        return False
    x_labels, y_labels = map(set, terms)
    sizes: dict[str, set[int]] = {}
    for labels, argument in zip(terms, arguments, strict=True):
        for label, size in zip(labels, shape_of(argument), strict=True):
            sizes.setdefault(label, set()).add(int(size))
    return (
        all(len(set(labels)) == len(labels) for labels in (*terms, output))
        and x_labels ^ y_labels <= set(output) <= x_labels | y_labels
        and all(len(label_sizes) == 1 for label_sizes in sizes.values())
    )
