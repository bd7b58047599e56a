"""A pass that transposes factors instead of their product: `(A B)^T` is `B^T A^T`.

Keras computes the scores of attention with the keys first. The factors are smaller than the scores
and are transposed anyway.
"""

from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute


def transpose_products(view: GraphView) -> int:
    """Replaces `Transpose(MatMul(a, b))` if `a` or `b` is itself a `Transpose`.

    Returns the number of replacements.
    """
    return view.rewrite(_turn_product, "Transpose")


def _turn_product(view: GraphView, node: Any) -> list[Any] | None:
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
    """Returns the permutation of axes that swaps the last two."""
    axes = list(range(rank))
    return [*axes[:-2], *reversed(axes[-2:])]
