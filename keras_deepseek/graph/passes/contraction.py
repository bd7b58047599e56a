"""Products of several tensors: gathered from the graph, put in the cheapest order, and recorded."""

import dataclasses
import itertools
import math
import string
from collections.abc import Sequence
from typing import Any

import keras

from keras_deepseek.graph.ir import CONSTANT, WEIGHT, Graph, Node, Shape, Value
from keras_deepseek.graph.trace import record

ELEMENT_COST = 4.0
"""The cost of moving one number, in multiply-adds."""

_MOST_OPERANDS = 7  # `OrderSearch` tries all orders.
_MOST_NODES = 50
_LETTERS = string.ascii_letters


@dataclasses.dataclass(frozen=True)
class Product:
    """One node as an einsum with scalar factors: `out = factors * einsum(labels, operands)`."""

    operands: tuple[Value, ...]
    labels: tuple[str, ...]
    out: str
    factors: tuple[Any, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Returns the size of each label."""
        return _sizes(self.operands, self.labels)


def as_product(node: Node) -> Product | None:
    """Returns a matmul, einsum, transpose, or a tensor times a scalar, as a `Product`."""
    if node.kind == "Einsum":
        return _einsum(node)
    if node.kind == "Matmul":
        return _matmul(node)
    if (axes := permutation(node)) is not None:
        labels = _LETTERS[: len(axes)]
        return Product((node.args[0],), (labels,), "".join(labels[axis] for axis in axes))
    if node.kind == "Multiply":
        for value, factor in (node.args[:2], node.args[1::-1]):
            is_tensor = isinstance(value, Value) and value.dtype == node.spec.dtype
            if is_tensor and _is_scalar(factor) and not _is_scalar(value):
                labels = _LETTERS[: len(value.shape)]
                return Product((value,), (labels,), labels, (factor,))
    if node.kind in ("Divide", "TrueDivide") and isinstance(node.args[1], int | float):
        value, divisor = node.args
        if isinstance(value, Value) and value.dtype == node.spec.dtype and divisor != 0:
            labels = _LETTERS[: len(value.shape)]
            return Product((value,), (labels,), labels, (1 / divisor,))
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
        one, other = axes[operation.axis1], axes[operation.axis2]
        axes[one], axes[other] = other, one
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
    if "->" not in text or not all(isinstance(each, Value) for each in operands):
        return None
    before, out = text.split("->")
    labels = before.split(",")
    if "." in text:
        pairs = zip(operands, labels, strict=True)
        spread = {each.shape[: len(each.shape) - len(text) + 3] for each, text in pairs}
        if len(spread) > 1 or not all(each.startswith("...") for each in (*labels, out)):
            return None
        unused = [letter for letter in _LETTERS if letter not in text]
        letters = "".join(unused[: len(spread.pop())])
        labels, out = [each.replace("...", letters) for each in labels], out.replace("...", letters)
    sizes: dict[str, int] = {}
    for value, each in zip(operands, labels, strict=True):
        for label, size in zip(each, value.shape, strict=True):
            if each.count(label) > 1 or sizes.setdefault(label, size) != size:
                return None  # A diagonal, or an axis of size 1 that is broadcast.
    return Product(tuple(operands), tuple(labels), out)


def _matmul(node: Node) -> Product | None:
    one, other = node.args[:2]
    if not (isinstance(one, Value) and isinstance(other, Value)):
        return None
    rank = len(one.shape)
    labels, new = _LETTERS[:rank], _LETTERS[rank]
    if rank >= 2 and len(other.shape) == 2:
        return Product((one, other), (labels, labels[-1] + new), labels[:-1] + new)
    if rank == len(other.shape) > 2 and one.shape[:-2] == other.shape[:-2]:
        return Product((one, other), (labels, labels[:-2] + labels[-1] + new), labels[:-1] + new)
    return None


def _is_scalar(value: Any) -> bool:
    if isinstance(value, Value):
        return value.node.kind == CONSTANT and value.shape == ()
    is_number = isinstance(value, int | float)
    return is_number or (keras.ops.is_tensor(value) and tuple(value.shape) == ())


def _sizes(operands: Sequence[Value], labels: Sequence[Any]) -> dict[Any, int]:
    return {
        label: size
        for value, each in zip(operands, labels, strict=True)
        for label, size in zip(each, value.shape, strict=True)
    }


def count_multiply_adds(graph: Graph) -> int:
    """Returns the multiply-adds of the products and convolutions outside of whole layers.

    The sizes are those at which the graph was traced.
    """
    return sum(_multiply_adds(node) for node in graph.nodes())


def _multiply_adds(node: Node) -> int:
    out = math.prod(node.spec.shape)
    if node.kind in ("Conv", "DepthwiseConv") and isinstance(node.args[1], Value):
        kernel = node.args[1].shape
        return out * math.prod(kernel[: -1 if node.kind == "Conv" else -2])
    if node.kind == "DotProductAttention":
        query, key, value = node.values()[:3]
        scores = math.prod(query.shape[:3]) * key.shape[1]
        return scores * (query.shape[3] + value.shape[3])
    product = as_product(node) if is_contraction(node) else None
    return 0 if product is None else math.prod(product.sizes().values())


@dataclasses.dataclass
class Contraction:
    """Products of products, gathered into one. Labels are numbers."""

    operands: list[Value]
    labels: list[list[int]]
    out: list[int]
    factors: list[Any]
    nodes: list[Node]

    def sizes(self) -> dict[int, int]:
        """Returns the size of each label."""
        return _sizes(self.operands, self.labels)


def gather(root: Node, users: dict[Value, list[Node | None]]) -> Contraction | None:
    """Returns the contraction of a node and of the products before it that only it reads.

    It has at most `_MOST_OPERANDS` operands and `_MOST_NODES` nodes, so that each takes bounded
    time.
    """
    numbers = itertools.count()
    room = [_MOST_OPERANDS - 1, _MOST_NODES]

    def expand(node: Node) -> Contraction | None:
        product = as_product(node)
        if product is None or len(product.operands) - 1 > room[0] or room[1] == 0:
            return None
        room[:] = room[0] - len(product.operands) + 1, room[1] - 1
        names: dict[str, int] = {}
        for label in itertools.chain(*product.labels, product.out):
            if label not in names:
                names[label] = next(numbers)
        found = Contraction([], [], [names[c] for c in product.out], list(product.factors), [node])
        for value, text in zip(product.operands, product.labels, strict=True):
            labels = [names[label] for label in text]
            is_inner = len(users[value]) == 1 and len(value.node.outputs) == 1
            inner = expand(value.node) if is_inner else None
            if inner is None:
                found.operands.append(value)
                found.labels.append(labels)
                continue
            renamed = dict(zip(inner.out, labels, strict=True))
            found.operands += inner.operands
            found.labels += [[renamed.get(label, label) for label in each] for each in inner.labels]
            found.factors += inner.factors
            found.nodes += inner.nodes
        return found

    return expand(root)


def trained(graph: Graph, training: bool) -> set[Node]:
    """Returns the nodes that have a gradient in training, and none in inference.

    A product costs once more for each of its operands that has a gradient.
    """
    found: set[Node] = set()
    for node in graph.nodes() if training else ():
        is_weight = node.kind == WEIGHT and node.content.trainable
        is_layer = node.is_layer and bool(node.operation.trainable_variables)
        if is_weight or is_layer or any(value.node in found for value in node.values()):
            found.add(node)
    return found


def product_cost(one: Any, other: Any, out: Any, sizes: dict[Any, int], gradients: int) -> float:
    """Returns the cost of a product of two tensors with the given labels, in multiply-adds.

    Args:
        one: The labels of the first tensor.
        other: The labels of the second tensor.
        out: The labels of the product.
        sizes: The size of each label.
        gradients: How many of the two have a gradient.
    """

    def count(labels: Any) -> int:
        return math.prod(sizes[label] for label in labels)

    moved = count(one) + count(other) + count(out)
    return count(set(one) | set(other)) * (1 + gradients) + ELEMENT_COST * moved


def elements(shape: Shape) -> float:
    """Returns the cost of moving a tensor of a shape, in multiply-adds."""
    return ELEMENT_COST * math.prod(shape)


Order = int | tuple["Order", "Order"]
"""The number of an operand, or the product of two orders."""


class OrderSearch:
    """The cheapest order of a contraction, found among all orders."""

    def __init__(self, contraction: Contraction, gradients: Sequence[bool]) -> None:
        self._contraction = contraction
        self._gradients = gradients
        self._sizes = contraction.sizes()
        self._all = frozenset(range(len(contraction.operands)))
        self._best: dict[frozenset[int], tuple[float, Order]] = {}
        cost, self.order = self._solve(self._all)
        # The scalar factors multiply the smallest tensor.
        self._scaled = min(_groups(self.order), key=self._count)
        scaled = elements((self._count(self._scaled),))
        self.cost = cost + 2 * len(contraction.factors) * scaled

    def _count(self, group: frozenset[int]) -> int:
        """Returns the number of elements of the product of some operands."""
        return math.prod(self._sizes[label] for label in self.labels_of(group))

    def labels_of(self, group: frozenset[int]) -> set[int]:
        """Returns the labels that the product of some operands keeps."""
        labels = self._contraction.labels
        outside = {label for each in self._all - group for label in labels[each]}
        inside = {label for each in group for label in labels[each]}
        return inside & (outside | set(self._contraction.out))

    def _solve(self, group: frozenset[int]) -> tuple[float, Order]:
        if len(group) == 1:
            return 0.0, next(iter(group))
        if group not in self._best:
            pairs = (
                (frozenset(left), group - frozenset(left))
                for number in range(1, len(group) // 2 + 1)
                for left in itertools.combinations(sorted(group), number)
            )
            self._best[group] = min((self._join(*each) for each in pairs), key=lambda each: each[0])
        return self._best[group]

    def _join(self, left: frozenset[int], right: frozenset[int]) -> tuple[float, Order]:
        left, right = sorted((left, right), key=min)  # As they stand, for a matmul.
        (left_cost, left_order), (right_cost, right_order) = self._solve(left), self._solve(right)
        gradients = sum(any(self._gradients[each] for each in side) for side in (left, right))
        one, other, out = (self.labels_of(each) for each in (left, right, left | right))
        cost = product_cost(one, other, out, self._sizes, gradients)
        return left_cost + right_cost + cost, (left_order, right_order)

    def record(self, layer: str) -> Value:
        """Records the contraction in the cheapest order, and returns its value."""
        return self._record(self.order, layer)[0]

    def _record(self, order: Order, layer: str) -> tuple[Value, list[int]]:
        group = _groups(order)[0]
        if isinstance(order, int):
            value, out = self._contraction.operands[order], self._contraction.labels[order]
        else:
            (one, one_labels), (other, other_labels) = (self._record(each, layer) for each in order)
            out = self._contraction.out
            if group != self._all:
                kept = self.labels_of(group)
                out = [each for each in dict.fromkeys([*one_labels, *other_labels]) if each in kept]
            value = _record_product(one, one_labels, other, other_labels, out, layer)
        for factor in self._contraction.factors if group == self._scaled else ():
            value = record(keras.ops.multiply, value, factor, layer=layer)
        return value, out


def _record_product(
    one: Value,
    one_labels: list[int],
    other: Value,
    other_labels: list[int],
    out: list[int],
    layer: str,
) -> Value:
    """Records a matmul if the axes stand as it needs them, else an einsum."""
    batch = other_labels[:-2]
    if (
        [*batch, *one_labels[-1:]] == other_labels[:-1]
        and batch == (one_labels[:-2] if batch else [])
        and out == [*one_labels[:-1], other_labels[-1]]
    ):
        return record(keras.ops.matmul, one, other, layer=layer)
    letters: dict[int, str] = {}
    texts = [
        "".join(letters.setdefault(label, _LETTERS[len(letters)]) for label in labels)
        for labels in (one_labels, other_labels, out)
    ]
    subscripts = f"{texts[0]},{texts[1]}->{texts[2]}"
    return record(keras.ops.einsum, subscripts, one, other, layer=layer)


def _groups(order: Order) -> list[frozenset[int]]:
    """Returns the operands of an order, and those of each product and operand inside it."""
    if isinstance(order, int):
        return [frozenset([order])]
    one, other = map(_groups, order)
    return [one[0] | other[0], *one, *other]
