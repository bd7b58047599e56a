"""Passes that remove operations which compute nothing new: identities and common subexpressions."""

from typing import Any

import keras

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
from keras_deepseek.graph.passes.contraction import permutation
from keras_deepseek.graph.trace import record

_MAY_DO_NOTHING = {"BroadcastTo", "Cast", "ConvertToTensor", "Identity", "Reshape"}


def remove_identities(graph: Graph, training: bool) -> Changes:
    """Removes casts, reshapes and transposes without effect. Works in inference and training."""
    replacements: dict[Value, Value] = {}
    for node in graph.nodes():
        axes = permutation(node)
        if node.kind in ("Multiply", "Divide", "TrueDivide"):  # A LoRA's scale is often 1.
            if not (isinstance(node.args[1], int | float) and node.args[1] == 1):
                continue
        elif axes is None and node.kind not in _MAY_DO_NOTHING:
            continue
        if not isinstance(node.args[0], Value):
            continue
        value = replacements.get(node.args[0], node.args[0])
        inner = permutation(value.node)
        is_same = (value.shape, value.dtype) == (node.spec.shape, node.spec.dtype)
        if node.kind == "Cast" and "int" in value.dtype:
            continue  # The indices of `top_k` are int64 on PyTorch, where Keras says int32.
        if is_same and (axes is None or axes == sorted(axes)):
            text = f"removed {node.kind}"
        elif axes is not None and inner is not None:
            text = "joined two transposes"
            value = value.node.args[0]
            joined = [inner[axis] for axis in axes]
            if joined != sorted(joined):
                value = record(keras.ops.transpose, value, joined, layer=node.layer)
        else:
            continue
        replacements[Value(node)] = value
        yield node, [value], Rewrite((node.layer,), text)


def merge_common_subexpressions(graph: Graph, training: bool) -> Changes:
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
    if node.kind == WEIGHT:
        return WEIGHT, id(node.content), node.spec.dtype
    if node.kind == CONSTANT:
        return CONSTANT, value_key(node.content)
    args, kwargs = node.map_values(lambda value: replacements.get(value, value))
    return node.kind, value_key((attributes(node.operation), args, kwargs))
