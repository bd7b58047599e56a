"""Passes that put products of several tensors in the order that costs least.

Matrix-chain order: `(Q K^T) V` becomes `Q (K^T V)` where there is no softmax between, `x (A B)`
becomes `(x A) B`, and latent attention with one query absorbs its projections. No compiler of the
three frameworks changes the order of products.

A product by a sum of weights is split: `x (W + s A B)`, a LoRA, becomes `x W + s (x A) B`. The sum
of the weights is not computed, and a frozen `W` has no gradient.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator

import keras

from keras_deepseek.graph.ir import WEIGHT, Changes, Graph, Node, Rewrite, Value
from keras_deepseek.graph.passes.contraction import (
    ELEMENT_COST,
    LETTERS,
    Product,
    as_product,
    elements,
    gather,
    is_contraction,
    node_cost,
    product_cost,
    trained,
)
from keras_deepseek.graph.trace import record

_LEAST_GAIN_OF_ORDER = 0.1
_LEAST_GAIN_OF_SPLIT = 0.05
# The tensors that are moved, of the kernel's shape for `W + s A B`, of the output's for its sum.
_MOVES_OF_KERNEL_SUM, _MOVES_OF_OUTPUT_SUM = 6, 3


def reorder_products(graph: Graph, training: bool) -> Changes:
    """Reorders matmuls and einsums, transposes and scalar factors among them, by cost.

    Works in inference and training. Products in float16 stay, since another order may overflow.
    """
    users, with_gradient = graph.users(), trained(graph, training)
    gathered: set[Node] = set()
    for node in reversed(graph.nodes()):
        if node in gathered or node.spec.dtype == "float16":
            continue
        product = gather(node, users)
        if product is None or len(product.operands) < 3:
            continue
        gathered.update(product.nodes)
        old_cost = sum(node_cost(inner, with_gradient) for inner in product.nodes)
        search = _OrderSearch(product, with_gradient)
        if search.cost <= (1 - _LEAST_GAIN_OF_ORDER) * old_cost:
            layers = tuple(dict.fromkeys(inner.layer for inner in reversed(product.nodes)))
            text = f"reordered {len(product.operands)} factors: {old_cost:.3g} to "
            rewrite = Rewrite(layers, f"{text}{search.cost:.3g} multiply-adds")
            yield node, [search.record(node.layer)], rewrite


class _OrderSearch:
    """The cheapest order of a product, by dynamic programming over all groups of its operands.

    A group is a set of indices of operands that are multiplied with each other first.
    """

    def __init__(self, product: Product, with_gradient: Collection[Node]) -> None:
        self._product = product
        self._gradients = [operand.node in with_gradient for operand in product.operands]
        self._sizes = product.sizes()
        self._all = frozenset(range(len(product.operands)))
        self._best: dict[frozenset[int], tuple[float, list[frozenset[int]]]] = {}
        cost = self._solve(self._all)[0]
        # The scalar factors multiply the smallest tensor.
        self._scaled = min(self._groups(self._all), key=self._count)
        self.cost = cost + 2 * len(product.factors) * ELEMENT_COST * self._count(self._scaled)

    def _groups(self, group: frozenset[int]) -> Iterator[frozenset[int]]:
        """Yields a group of operands, and all groups into which the cheapest order divides it."""
        yield group
        for factor in self._solve(group)[1]:
            yield from self._groups(factor)

    def _count(self, group: frozenset[int]) -> int:
        return math.prod(self._sizes[label] for label in self._labels_of(group))

    def _labels_of(self, group: frozenset[int]) -> set[str]:
        """Returns the labels that the product of some operands keeps."""
        labels = self._product.labels
        outside = {*self._product.out}.union(*(labels[index] for index in self._all - group))
        return outside & {label for index in group for label in labels[index]}

    def _solve(self, group: frozenset[int]) -> tuple[float, list[frozenset[int]]]:
        """Returns the least cost of the product of some operands, and its two factors as groups."""
        if len(group) == 1:
            return 0.0, []
        if group not in self._best:
            halves = (
                frozenset(half)
                for number in range(1, len(group) // 2 + 1)
                for half in itertools.combinations(sorted(group), number)
            )
            # As they stand, for a matmul.
            pairs = (sorted((half, group - half), key=min) for half in halves)
            costs = [(self._cost(pair), pair) for pair in pairs]
            self._best[group] = min(costs, key=lambda solution: solution[0])
        return self._best[group]

    def _cost(self, pair: list[frozenset[int]]) -> float:
        first, second = pair
        gradients = sum(any(self._gradients[index] for index in half) for half in pair)
        first_labels, second_labels = self._labels_of(first), self._labels_of(second)
        out_labels = self._labels_of(first | second)
        cost = product_cost(first_labels, second_labels, out_labels, self._sizes, gradients)
        return self._solve(first)[0] + self._solve(second)[0] + cost

    def record(self, layer: str) -> Value:
        return self._record(self._all, layer)[0]

    def _record(self, group: frozenset[int], layer: str) -> tuple[Value, str]:
        """Records the product of some operands; returns its value and the labels of its axes."""
        if len(group) == 1:
            (index,) = group
            value, out = self._product.operands[index], self._product.labels[index]
        else:
            first, second = (self._record(half, layer) for half in self._best[group][1])
            out = self._product.out
            if group != self._all:
                remaining = self._labels_of(group)
                labels = dict.fromkeys(first[1] + second[1])
                out = "".join(label for label in labels if label in remaining)
            value = _record_product(*first, *second, out, layer)
        for factor in self._product.factors if group == self._scaled else ():
            value = record(keras.ops.multiply, value, factor, layer=layer)
        return value, out


def _record_product(
    first: Value, first_labels: str, second: Value, second_labels: str, out: str, layer: str
) -> Value:
    """Records a matmul if the axes are in the order that it needs, else an einsum."""
    batch = second_labels[:-2]
    if (
        batch + first_labels[-1:] == second_labels[:-1]
        and batch == (first_labels[:-2] if batch else "")
        and out == first_labels[:-1] + second_labels[-1]
    ):
        return record(keras.ops.matmul, first, second, layer=layer)
    subscripts = f"{first_labels},{second_labels}->{out}"
    used = "".join(dict.fromkeys(first_labels + second_labels))
    subscripts = subscripts.translate(str.maketrans(used, LETTERS[: len(used)]))
    return record(keras.ops.einsum, subscripts, first, second, layer=layer)


def split_sums(graph: Graph, training: bool) -> Changes:
    """Splits a product by `W + s A B` if that costs less.

    Works in inference and training. Products in float16 stay, since a part may overflow.
    """
    users, with_gradient = graph.users(), trained(graph, training)
    for node in graph.nodes():
        product = as_product(node) if is_contraction(node) else None
        if product is None or len(product.operands) != 2 or node.spec.dtype == "float16":
            continue
        x, kernel = product.operands
        terms = _terms(kernel)
        if terms is None or len(users[kernel]) != 1 or len(users[terms[1]]) != 1:
            continue
        by_weight, by_low_rank = (_with_kernel(node, kernel, term) for term in terms)
        users[x].append(by_low_rank)  # So that x itself is not gathered.
        whole = gather(by_low_rank, users)
        if whole is None or len(whole.operands) != 3:  # Not `x`, `A` and `B`.
            continue
        old_cost = sum(node_cost(inner, with_gradient) for inner in (node, *whole.nodes[1:]))
        old_cost += _MOVES_OF_KERNEL_SUM * elements(kernel.shape)
        output_shape = _flatten(whole, node, graph)
        search = _OrderSearch(whole, with_gradient)
        new_cost = search.cost + node_cost(by_weight, with_gradient)
        new_cost += _MOVES_OF_OUTPUT_SUM * elements(node.spec.shape)
        if new_cost > (1 - _LEAST_GAIN_OF_SPLIT) * old_cost:
            continue
        low_rank = search.record(node.layer)
        if output_shape is not None:
            low_rank = record(keras.ops.reshape, low_rank, output_shape, layer=node.layer)
        split = record(keras.ops.add, Value(by_weight), low_rank, layer=node.layer)
        text = f"split x(W + AB): {old_cost:.3g} to {new_cost:.3g} multiply-adds"
        yield node, [split], Rewrite((node.layer,), text)


def _terms(kernel: Value) -> list[Value] | None:
    """Returns the weight and the other term of a sum, or `None` for another kernel."""
    terms = kernel.node.args[:2]
    if kernel.node.kind != "Add" or not all(isinstance(term, Value) for term in terms):
        return None
    weight, other = sorted(terms, key=lambda value: value.node.kind != WEIGHT)
    is_sum = weight.node.kind == WEIGHT and weight.shape == other.shape == kernel.shape
    return [weight, other] if is_sum else None


def _with_kernel(node: Node, kernel: Value, other: Value) -> Node:
    args, kwargs = node.map_values(lambda value: other if value == kernel else value)
    return dataclasses.replace(node, args=args, kwargs=kwargs)


def _flatten(whole: Product, node: Node, graph: Graph) -> tuple[int, ...] | None:
    """Flattens the leading axes of x; returns the shape to restore in the product, or `None`.

    The gradients of products of three axes by thin matrices are slow on JAX's CPU: those of two
    feed-forward layers with LoRAs took 102 ms, and flattened 43 ms.
    """
    x, labels, out = whole.operands[0], whole.labels[0], whole.out
    pairs = enumerate(zip(labels, out, strict=False))
    count = next((axis for axis, (label, out_label) in pairs if label != out_label), len(out))
    free = [axis for axis in range(count) if x.shape[axis] in graph.free_sizes]
    if count < 2 or len(free) > 1:
        return None
    # The size of the first label is now that of all of them.
    whole.operands[0] = record(keras.ops.reshape, x, (-1, *x.shape[count:]), layer=node.layer)
    whole.labels[0], whole.out = labels[0] + labels[count:], out[0] + out[count:]
    shape = list(node.spec.shape)
    shape[free[0] if free else 0] = -1
    return tuple(shape)
