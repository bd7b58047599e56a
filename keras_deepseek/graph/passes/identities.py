"""Removes operations that return what they get, and joins transposes that follow each other."""

import keras

from keras_deepseek.graph.ir import Changes, Graph, Rewrite, Value
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
