"""Removes operations that return what they get, and joins transposes that follow each other."""

import keras

from keras_deepseek.graph.ir import Graph, Node, Rewrite, Value
from keras_deepseek.graph.passes.contraction import permutation
from keras_deepseek.graph.trace import record

_MAY_DO_NOTHING = {"BroadcastTo", "Cast", "ConvertToTensor", "Identity", "Reshape"}


def remove_identities(graph: Graph, training: bool) -> list[Rewrite]:
    """Removes casts, reshapes and transposes without effect. Works in inference and training."""
    rewrites = []

    def find(node: Node) -> list[Value] | None:
        axes = permutation(node)
        value = node.args[0] if node.args else None
        if node.kind in ("Multiply", "Divide", "TrueDivide"):  # A LoRA's scale is often 1.
            if not (isinstance(node.args[1], int | float) and node.args[1] == 1):
                return None
        elif axes is None and node.kind not in _MAY_DO_NOTHING:
            return None
        if not isinstance(value, Value):
            return None
        is_same = (value.shape, value.dtype) == (node.spec.shape, node.spec.dtype)
        if is_same and (axes is None or axes == sorted(axes)):
            rewrites.append(Rewrite((node.layer,), f"removed {node.kind}"))
            return [value]
        inner = permutation(value.node)
        if axes is None or inner is None:
            return None
        rewrites.append(Rewrite((node.layer,), "joined two transposes"))
        joined = [inner[axis] for axis in axes]
        source = value.node.args[0]
        if joined == sorted(joined):
            return [source]
        return [record(keras.ops.transpose, source, joined, layer=node.layer)]

    graph.rewrite(find)
    return rewrites
