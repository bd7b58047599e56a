"""Computes equal operations once."""

from typing import Any

from keras_deepseek.graph.ir import (
    CONSTANT,
    INPUT,
    WEIGHT,
    Graph,
    Node,
    Rewrite,
    Value,
    attributes,
    value_key,
)


def merge_equal_operations(graph: Graph, training: bool) -> list[Rewrite]:
    """Keeps one of several operations with equal arguments. Works in inference and training.

    Whole layers stay: they may be random or have state.
    """
    first: dict[Any, Node] = {}
    rewrites = []

    def find(node: Node) -> list[Value] | None:
        if node.kind == INPUT or node.is_layer:
            return None
        kept = first.setdefault(_key(node), node)
        if kept is node:
            return None
        if node.is_operation:
            layers = tuple(dict.fromkeys((kept.layer, node.layer)))
            rewrites.append(Rewrite(layers, f"computes {node.kind} once"))
        return [Value(kept, index) for index in range(len(node.outputs))]

    graph.rewrite(find)
    return rewrites


def _key(node: Node) -> Any:
    """Returns a key that is the same for nodes with the same result."""
    if node.kind == WEIGHT:
        return WEIGHT, id(node.content), node.spec.dtype
    if node.kind == CONSTANT:
        return CONSTANT, value_key(node.content)
    parts = (attributes(node.operation), node.args, node.kwargs)
    return node.kind, *(value_key(each) for each in parts)
