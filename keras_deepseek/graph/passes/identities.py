"""Removes operations that return what they get, and joins transposes that follow each other."""

import keras

from keras_deepseek.graph.ir import Graph, Node, Rewrite, Value
from keras_deepseek.graph.trace import record

_MAY_DO_NOTHING = {"BroadcastTo", "Cast", "ConvertToTensor", "Identity", "Reshape", "Transpose"}


def remove_identities(graph: Graph, training: bool) -> list[Rewrite]:
    """Removes casts, reshapes and transposes without effect. Works in inference and training."""
    rewrites = []

    def find(node: Node) -> list[Value] | None:
        if node.kind not in _MAY_DO_NOTHING or not isinstance(node.args[0], Value):
            return None
        value = node.args[0]
        axes = _axes(node)
        if (value.shape, value.dtype) == (node.spec.shape, node.spec.dtype) and (
            axes is None or list(axes) == sorted(axes)
        ):
            rewrites.append(Rewrite((node.layer,), f"removed {node.kind}"))
            return [value]
        inner = _axes(value.node)
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


def _axes(node: Node) -> list[int] | None:
    """Returns the axes of a transpose, or `None` for another node."""
    if node.kind != "Transpose":
        return None
    return list(node.operation.axes or reversed(range(len(node.spec.shape))))
