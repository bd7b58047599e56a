"""Common subexpression elimination (CSE): computes equal operations once."""

from typing import Any

from keras_deepseek.graph.ir import (
    CONSTANT,
    INPUT,
    WEIGHT,
    Changes,
    Graph,
    Node,
    Rewrite,
    Value,
    attributes,
    value_key,
)


def merge_equal_operations(graph: Graph, training: bool) -> Changes:
    """Keeps one of several operations with equal arguments. Works in inference and training.

    Whole layers and operations of unknown code stay: they may be random or have state.
    """
    first: dict[Any, Node] = {}
    replacements: dict[Value, Value] = {}
    for node in graph.nodes():
        if node.kind == INPUT or node.may_have_state:
            continue
        equal = first.setdefault(_key(node, replacements), node)
        if equal is node:
            continue
        values = [Value(equal, index) for index in range(len(node.outputs))]
        replacements |= {Value(node, index): value for index, value in enumerate(values)}
        layers = tuple(dict.fromkeys((equal.layer, node.layer)))
        text = f"computes {node.kind} once"
        yield node, values, Rewrite(layers, text) if node.operation else None


def _key(node: Node, replacements: dict[Value, Value]) -> Any:
    """Returns a key that is the same for nodes with the same result."""
    if node.kind == WEIGHT:
        return WEIGHT, id(node.content), node.spec.dtype
    if node.kind == CONSTANT:
        return CONSTANT, value_key(node.content)
    args, kwargs = node.map_values(lambda value: replacements.get(value, value))
    return node.kind, value_key((attributes(node.operation), args, kwargs))
