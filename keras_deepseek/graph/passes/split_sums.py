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
    node_cost,
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
        if whole is None or len(whole.operands) != 3:
            continue
        old_cost = sum(node_cost(inner, with_gradient) for inner in (node, *whole.nodes[1:]))
        old_cost += 6 * elements(kernel.shape)
        shape = _flatten(whole, node, graph)
        search = OrderSearch(whole, with_gradient)
        new_cost = search.cost + node_cost(by_weight, with_gradient)
        new_cost += 3 * elements(node.spec.shape)
        if new_cost > (1 - _LEAST_GAIN) * old_cost:
            continue
        low_rank = search.record(node.layer)
        if shape is not None:
            low_rank = record(keras.ops.reshape, low_rank, shape, layer=node.layer)
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
    """Flattens the leading axes of x, and returns the shape to give to the product then.

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
