"""Matrix-chain order: puts products of several tensors in the order that costs least.

`(Q K^T) V` becomes `Q (K^T V)` where there is no softmax between, `x (A B)` becomes `(x A) B`, and
latent attention with one query absorbs its projections. No compiler of the three frameworks changes
the order of products.
"""

from keras_deepseek.graph.ir import Changes, Graph, Node, Rewrite
from keras_deepseek.graph.passes.contraction import OrderSearch, gather, node_cost, trained

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
        old_cost = sum(node_cost(inner, with_gradient) for inner in product.nodes)
        search = OrderSearch(product, with_gradient)
        if search.cost <= (1 - _LEAST_GAIN) * old_cost:
            layers = tuple(dict.fromkeys(inner.layer for inner in reversed(product.nodes)))
            text = f"reordered {len(product.operands)} factors: {old_cost:.3g} to "
            rewrite = Rewrite(layers, f"{text}{search.cost:.3g} multiply-adds")
            yield node, [search.record(node.layer)], rewrite
