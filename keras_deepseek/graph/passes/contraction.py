"""Products of several tensors, gathered from the graph as one einsum, and their costs."""

import dataclasses
import itertools
import math
import string
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import keras

from keras_deepseek.graph.ir import CONSTANT, WEIGHT, Graph, Node, Shape, Value

ELEMENT_COST = 4.0
"""The cost of moving one number, in multiply-adds."""

_MOST_OPERANDS = 7  # All orders are tried.
_MOST_NODES = 50
LETTERS = string.ascii_letters
_FIRST_LABEL = 0x100


@dataclasses.dataclass
class Product:
    """Nodes as one einsum with scalar factors: `out = factors * einsum(labels, operands)`.

    A label is a character, which stands for an axis.
    """

    operands: list[Value]
    labels: list[str]
    out: str
    nodes: list[Node]
    factors: list[Any] = dataclasses.field(default_factory=list)

    def sizes(self) -> dict[str, int]:
        """Returns the size of each label."""
        return {
            label: size
            for value, labels in zip(self.operands, self.labels, strict=True)
            for label, size in zip(labels, value.shape, strict=True)
        }


def as_product(node: Node) -> Product | None:
    """Returns a matmul, einsum, transpose, or a tensor times a scalar, as a `Product`."""
    if node.kind == "Einsum":
        return _einsum(node)
    if node.kind == "Matmul":
        return _matmul(node)
    if node.kind in ("Multiply", "Divide", "TrueDivide"):
        return _scaling(node)
    if (axes := permutation(node)) is not None:
        labels = LETTERS[: len(axes)]
        return Product([node.args[0]], [labels], "".join(labels[axis] for axis in axes), [node])
    return None


def permutation(node: Node) -> list[int] | None:
    """Returns the axes of a transpose, `moveaxis` or `swapaxes`, or `None` for another node."""
    if node.kind not in ("Transpose", "Moveaxis", "Swapaxes"):
        return None
    if not isinstance(node.args[0], Value):
        return None
    operation, axes = node.operation, list(range(len(node.spec.shape)))
    if node.kind == "Transpose":
        return list(operation.axes or reversed(axes))
    if node.kind == "Swapaxes":
        first, second = axes[operation.axis1], axes[operation.axis2]
        axes[first], axes[second] = second, first
        return axes
    sources = [axes[source] for source in operation.source]
    destinations = [axes[destination] for destination in operation.destination]
    moved = [axis for axis in axes if axis not in sources]
    for destination, source in sorted(zip(destinations, sources, strict=True)):
        moved.insert(destination, source)
    return moved


def is_contraction(node: Node) -> bool:
    """Returns True for a matmul or an einsum."""
    return node.kind in ("Einsum", "Matmul")


def _einsum(node: Node) -> Product | None:
    operands = node.args[0] if isinstance(node.args[0], list | tuple) else node.args
    text = node.operation.subscripts.replace(" ", "")
    if "->" not in text or not all(isinstance(operand, Value) for operand in operands):
        return None
    inputs, out = text.split("->")
    labels = inputs.split(",")
    if "." in text:
        pairs = zip(operands, labels, strict=True)
        # The axes that `...` stands for get letters, if they are the first ones and equal in all.
        spread = {operand.shape[: len(operand.shape) - len(term) + 3] for operand, term in pairs}
        if len(spread) > 1 or not all(term.startswith("...") for term in (*labels, out)):
            return None
        unused = [letter for letter in LETTERS if letter not in text]
        letters = "".join(unused[: len(spread.pop())])
        labels, out = [term.replace("...", letters) for term in labels], out.replace("...", letters)
    sizes: dict[str, int] = {}
    for operand, term in zip(operands, labels, strict=True):
        for label, size in zip(term, operand.shape, strict=True):
            if term.count(label) > 1 or sizes.setdefault(label, size) != size:
                return None  # A diagonal, or an axis of size 1 that is broadcast.
    return Product(list(operands), labels, out, [node])


def _matmul(node: Node) -> Product | None:
    first, second = node.args[:2]
    if not (isinstance(first, Value) and isinstance(second, Value)):
        return None
    rank = len(first.shape)
    labels, new = LETTERS[:rank], LETTERS[rank]
    if rank >= 2 and len(second.shape) == 2:
        return Product([first, second], [labels, labels[-1] + new], labels[:-1] + new, [node])
    if rank == len(second.shape) > 2 and first.shape[:-2] == second.shape[:-2]:
        second_labels = labels[:-2] + labels[-1] + new
        return Product([first, second], [labels, second_labels], labels[:-1] + new, [node])
    return None


def _scaling(node: Node) -> Product | None:
    first, second = node.args[:2]
    pairs = [(first, second), (second, first)]
    if node.kind != "Multiply":
        pairs = [(first, 1 / second)] if isinstance(second, int | float) and second != 0 else []
    for value, factor in pairs:
        is_tensor = isinstance(value, Value) and value.dtype == node.spec.dtype
        if is_tensor and _is_scalar(factor) and not _is_scalar(value):
            labels = LETTERS[: len(value.shape)]
            return Product([value], [labels], labels, [node], [factor])
    return None


def _is_scalar(value: Any) -> bool:
    if isinstance(value, Value):
        return value.node.kind == CONSTANT and value.shape == ()
    is_number = isinstance(value, int | float)
    return is_number or (keras.ops.is_tensor(value) and tuple(value.shape) == ())


def count_multiply_adds(graph: Graph, training: bool) -> int:
    """Returns the multiply-adds of the products and convolutions outside of whole layers.

    Those of the gradients are counted in training. The sizes are those of the trace.
    """
    with_gradient = trained(graph, training)
    return sum(multiply_adds(node, with_gradient) for node in graph.nodes())


def multiply_adds(node: Node, with_gradient: Collection[Node] = ()) -> int:
    """Returns the multiply-adds of a product, a convolution or an attention; 0 for other nodes."""
    values = node.values()

    def passes(values: Iterable[Value]) -> int:
        return 1 + sum(value.node in with_gradient for value in values)

    if node.kind == "DotProductAttention":
        query, key, value = values[:3]
        scores = math.prod(query.shape[:3]) * key.shape[1]
        of_scores = passes([query, key])
        of_values = passes([value]) + (of_scores > 1)
        return scores * (query.shape[3] * of_scores + value.shape[3] * of_values)
    if node.kind in ("Conv", "DepthwiseConv") and isinstance(node.args[1], Value):
        kernel = node.args[1].shape
        number = math.prod(node.spec.shape) * math.prod(kernel[: -1 if node.kind == "Conv" else -2])
    elif node.kind in ("Matmul", "Dot"):
        number = math.prod(node.spec.shape) * (values[0].shape or (1,))[-1]
    elif node.kind == "Einsum" and len(values) > 1:
        number = _count_einsum(node.operation.subscripts, [value.shape for value in values])
    else:
        return 0
    return number * passes(values)


def _count_einsum(subscripts: str, shapes: Sequence[Shape]) -> int:
    """Returns the product of the sizes of all labels. Axes under `...` are aligned at their end."""
    sizes: dict[str, int] = {}
    labels = subscripts.replace(" ", "").split("->")[0].split(",")
    for text, shape in zip(labels, shapes, strict=True):
        prefix, _, suffix = text.partition("...")
        spread = len(shape) - len(prefix) - len(suffix)
        names = [*prefix, *(f"...{axis}" for axis in range(-spread, 0)), *suffix]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), size)
    return math.prod(sizes.values())


def gather(root: Node, users: dict[Value, list[Node | None]]) -> Product | None:
    """Returns a node, and the products that only it reads, as one `Product` of several operands.

    For `(a @ b) @ c` it has the operands a, b and c. The limits `_MOST_OPERANDS` and `_MOST_NODES`
    bound the time of the search for an order.
    """
    new_labels = map(chr, itertools.count(_FIRST_LABEL))
    room = [_MOST_OPERANDS - 1, _MOST_NODES]

    def expand(node: Node) -> Product | None:
        product = as_product(node)
        if product is None or len(product.operands) - 1 > room[0] or room[1] == 0:
            return None
        room[:] = room[0] - len(product.operands) + 1, room[1] - 1
        names = str.maketrans(dict(zip(product.sizes(), new_labels)))  # noqa: B905 - endless
        gathered = Product([], [], product.out.translate(names), [node], product.factors)
        for value, own_labels in zip(product.operands, product.labels, strict=True):
            labels = own_labels.translate(names)
            is_inner = len(users[value]) == 1 and len(value.node.outputs) == 1
            inner = expand(value.node) if is_inner else None
            if inner is None:
                inner = Product([value], [labels], labels, [])
            renamed = str.maketrans(inner.out, labels)
            gathered.operands += inner.operands
            gathered.labels += [term.translate(renamed) for term in inner.labels]
            gathered.factors += inner.factors
            gathered.nodes += inner.nodes
        return gathered

    return expand(root)


def trained(graph: Graph, training: bool) -> set[Node]:
    """Returns the nodes that have a gradient: none in inference.

    A product costs once more for each of its operands that has a gradient.
    """
    with_gradient: set[Node] = set()
    for node in graph.nodes() if training else ():
        is_weight = node.kind == WEIGHT and node.content.trainable
        is_layer = node.is_layer and bool(node.operation.trainable_variables)
        if is_weight or is_layer or any(value.node in with_gradient for value in node.values()):
            with_gradient.add(node)
    return with_gradient


def product_cost(
    first_labels: Any, second_labels: Any, out_labels: Any, sizes: dict[Any, int], gradients: int
) -> float:
    """Returns the cost of a product of two tensors with the given labels, in multiply-adds.

    `gradients` is the number of the two tensors that have a gradient.
    """

    def count(labels: Any) -> int:
        return math.prod(sizes[label] for label in labels)

    moved = count(first_labels) + count(second_labels) + count(out_labels)
    multiplied = count(set(first_labels) | set(second_labels))
    return multiplied * (1 + gradients) + ELEMENT_COST * moved


def elements(shape: Shape) -> float:
    """Returns the cost of moving a tensor of a shape, in multiply-adds."""
    return ELEMENT_COST * math.prod(shape)


def node_cost(node: Node, with_gradient: Collection[Node]) -> float:
    """Returns the cost of one product node as the model wrote it, in multiply-adds.

    Its gradients are included. A transpose costs nothing.
    """
    product = as_product(node)
    assert product is not None
    if len(product.operands) == 2:
        gradients = sum(value.node in with_gradient for value in product.operands)
        first_labels, second_labels = product.labels
        return product_cost(first_labels, second_labels, product.out, product.sizes(), gradients)
    if not product.factors:  # A transpose is most often a view.
        return 0.0
    return 2 * elements((math.prod(product.sizes().values()),))
