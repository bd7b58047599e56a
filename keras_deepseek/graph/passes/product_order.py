"""Puts products of several tensors in the order that costs least.

`(Q K^T) V` becomes `Q (K^T V)` where there is no softmax between, `x (A B)` becomes `(x A) B`, and
latent attention with one query absorbs its projections. No compiler of the three frameworks changes
the order of products.
"""

import math

from keras_deepseek.graph.ir import Changes, Graph, Node, Rewrite
from keras_deepseek.graph.passes.contraction import (
    OrderSearch,
    as_product,
    elements,
    gather,
    product_cost,
    trained,
)

_LEAST_GAIN = 0.1


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
        before = sum(_cost(each, with_gradient) for each in product.nodes)
        search = OrderSearch(product, with_gradient)
        if search.cost <= (1 - _LEAST_GAIN) * before:
            layers = tuple(dict.fromkeys(each.layer for each in reversed(product.nodes)))
            text = f"reordered {len(product.operands)} factors: {before:.3g} to "
            rewrite = Rewrite(layers, f"{text}{search.cost:.3g} multiply-adds")
            yield node, [search.record(node.layer)], rewrite


def _cost(node: Node, with_gradient: set[Node]) -> float:
    """Returns the cost of one product as it stands."""
    product = as_product(node)
    assert product is not None
    if len(product.operands) == 2:
        gradients = sum(value.node in with_gradient for value in product.operands)
        one, other = product.labels
        return product_cost(one, other, product.out, product.sizes(), gradients)
    if not product.factors:  # A transpose is most often a view.
        return 0.0
    return 2 * elements((math.prod(product.sizes().values()),))
