"""Splits products by a sum of weights: `x (W + s A B)`, a LoRA, becomes `x W + s (x A) B`.

The sum of the weights is not computed, and a frozen `W` has no gradient.
"""

import dataclasses

import keras

from keras_deepseek.graph.ir import WEIGHT, Changes, Graph, Node, Rewrite, Value
from keras_deepseek.graph.passes.contraction import (
    OrderSearch,
    Product,
    as_product,
    elements,
    gather,
    is_contraction,
    product_cost,
    trained,
)
from keras_deepseek.graph.trace import record

_LEAST_GAIN = 0.05


def split_sums(graph: Graph, training: bool) -> Changes:
    """Splits a product by `W + s A B` if that costs less.

    Works in inference and training. Products in float16 stay, since a part may overflow.
    """
    users, with_gradient = graph.users(), trained(graph, training)
    for node in graph.nodes():
        sum_ = _find_sum(node, users, graph)
        if sum_ is None:
            continue
        search = OrderSearch(sum_.whole, with_gradient)
        before, after = sum_.costs(search.cost, with_gradient)
        if after > (1 - _LEAST_GAIN) * before:
            continue
        args, kwargs = node.map_values(
            lambda value, s=sum_: s.weight if value == s.kernel else value  # type: ignore[misc]
        )
        plain = Value(dataclasses.replace(node, args=args, kwargs=kwargs))
        low_rank = search.record(node.layer)
        if sum_.shape is not None:
            low_rank = record(keras.ops.reshape, low_rank, sum_.shape, layer=node.layer)
        split = record(keras.ops.add, plain, low_rank, layer=node.layer)
        text = f"split x(W + AB): {before:.3g} to {after:.3g} multiply-adds"
        yield node, [split], Rewrite((node.layer,), text)


@dataclasses.dataclass
class _Sum:
    """A product of `x` by a kernel, which is the sum of a weight and a low-rank product."""

    product: Product
    kernel: Value
    weight: Value
    low_rank: Product
    whole: Product  # Of x and the factors of the low-rank product.
    shape: tuple[int, ...] | None  # Of the product, if `whole` has a flattened x.

    def costs(self, low_rank_cost: float, with_gradient: set[Node]) -> tuple[float, float]:
        """Returns the costs of the product before and after, in multiply-adds."""
        sizes = self.whole.sizes()
        labels = (self.whole.labels[0], self.low_rank.out, self.whole.out)
        x = self.product.operands[0]

        def by(value: Value) -> float:
            gradients = (x.node in with_gradient) + (value.node in with_gradient)
            return product_cost(*labels, sizes, gradients)

        factors = sum(value.node in with_gradient for value in self.low_rank.operands)
        one, other = self.low_rank.labels
        made = product_cost(one, other, self.low_rank.out, sizes, factors)
        out = tuple(sizes[label] for label in self.whole.out)
        before = by(self.kernel) + made + 6 * elements(self.kernel.shape)
        return before, low_rank_cost + by(self.weight) + 3 * elements(out)


def _find_sum(node: Node, users: dict[Value, list[Node | None]], graph: Graph) -> _Sum | None:
    product = as_product(node) if is_contraction(node) else None
    if product is None or len(product.operands) != 2 or node.spec.dtype == "float16":
        return None
    x, kernel = product.operands
    terms = kernel.node.args[:2]
    if kernel.node.kind != "Add" or len(users[kernel]) != 1:
        return None
    if not all(isinstance(each, Value) for each in terms):
        return None
    weight, other = sorted(terms, key=lambda value: value.node.kind != WEIGHT)
    if weight.node.kind != WEIGHT or not weight.shape == other.shape == kernel.shape:
        return None
    low_rank = gather(other.node, users)
    if low_rank is None or len(low_rank.operands) != 2 or len(users[other]) != 1:
        return None
    names = dict(zip(product.labels[1], low_rank.out, strict=True))
    translation = str.maketrans(names)
    labels, out = product.labels[0].translate(translation), product.out.translate(translation)
    x, labels, out, shape = _flatten(x, labels, out, node, graph)
    whole = Product([x, *low_rank.operands], [labels, *low_rank.labels], out, [], low_rank.factors)
    return _Sum(product, kernel, weight, low_rank, whole, shape)


def _flatten(
    x: Value, labels: str, out: str, node: Node, graph: Graph
) -> tuple[Value, str, str, tuple[int, ...] | None]:
    """Flattens the leading axes of x, and returns the shape of the product without that.

    The gradients of products of three axes by thin matrices are slow on JAX's CPU: those of two
    feed-forward layers with LoRAs took 102 ms, and flattened 43 ms.
    """
    count = next(
        (n for n, (one, other) in enumerate(zip(labels, out, strict=False)) if one != other),
        len(out),
    )
    free = [axis for axis in range(count) if graph.is_free(x.shape[axis])]
    if count < 2 or len(free) > 1:
        return x, labels, out, None
    flat = record(keras.ops.reshape, x, (-1, *x.shape[count:]), layer=node.layer)
    shape = list(node.spec.shape)
    shape[free[0] if free else 0] = -1
    # The size of the first label is now that of all of them.
    return flat, labels[0] + labels[count:], out[0] + out[count:], tuple(shape)
