"""The nested graph of a model, from layer to inner layer to Keras operation."""

import itertools
import math
from collections.abc import Collection
from typing import Any

import keras

from keras_deepseek.artifacts.model_graph import End, GraphNode
from keras_deepseek.backend.keras_private.layers import inner_layers, unique_paths
from keras_deepseek.graph.ir import Graph, Node, Value
from keras_deepseek.graph.passes import run_passes
from keras_deepseek.graph.passes.contraction import multiply_adds
from keras_deepseek.graph.trace import describe_error, path_of, trace_model

_Position = list[tuple[GraphNode, int]]
"""The position of a node: from the model inwards, each layer around it and the index in it."""


def draw_layers(
    model: keras.Model, inputs: Any, *, passes: Collection[str] | None = None
) -> GraphNode:
    """Returns the nested graph of a built model at inference.

    A layer that can't be opened has no children, and says why. Layers that compute nothing at
    inference, such as dropout, are missing. Calls of one layer are drawn as one.

    The inputs are tensors or `KerasTensor`s. With `passes`, the result is the graph
    of the training step, as these passes have rewritten it.
    """
    with unique_paths(model) as layers:
        try:
            graph = trace_model(
                model, inputs, training=passes is not None, opens_foreign=passes is None
            )
            run_passes(graph, passes or (), training=True)
        except Exception as error:  # noqa: BLE001 - a model may raise anything on symbols
            return list_layers(model, describe_error(error))
        return _Drawing(model, layers).draw(graph)


def list_layers(layer: keras.Layer, reason: str | None) -> GraphNode:
    """Returns a layer that was not opened, with the layers that it holds, and no edges."""
    node = _describe_layer(layer)
    node.flops, node.reason = None, reason
    node.children = [list_layers(inner, None) for inner in inner_layers(layer)]
    return node


class _Drawing:
    """A nested graph that is made from a flat one, whose nodes name the layers that made them.

    Args:
        layers: Each layer by its path, with the path of the layer that holds it.
    """

    def __init__(self, model: keras.Model, layers: dict[str, tuple[keras.Layer, str]]) -> None:
        self._layers = layers
        self._root = _describe_layer(model)
        self._drawn_layers: dict[str, tuple[GraphNode, _Position]] = {
            path: (self._root, []) for path in ("", self._root.path)
        }
        self._position_of_node: dict[int, _Position] = {}
        self._exits: set[tuple[int, Value]] = set()  # Pairs: a layer, and a value that leaves it.

    def draw(self, graph: Graph) -> GraphNode:
        inputs = {id(node) for node in graph.inputs}
        nodes = [node for node in graph.nodes() if node.operation is not None or id(node) in inputs]
        for node in nodes:
            self._add(node, graph)
        for node in nodes:
            for value in node.values():
                self._connect(value, self._position_of_node[id(node)])
        for value in graph.outputs:
            self._connect(value, [])
        _sum_operations(self._root)
        return self._root

    def _add(self, node: Node, graph: Graph) -> None:
        outer, position = self._layer(node.layer)
        if node.is_layer:  # It was kept whole.
            outer.flops, outer.reason = None, graph.leaves[node.layer].reason
            outer.out = [_describe(spec) for spec in node.outputs]
        else:
            drawn = GraphNode("op", node.kind, node.kind, flops=_count_flops(node))
            drawn.kind = "input" if node.operation is None else "op"
            drawn.out = [_describe(spec) for spec in node.outputs]
            outer.children.append(drawn)
            position = [*position, (outer, len(outer.children) - 1)]
        self._position_of_node[id(node)] = position

    def _layer(self, path: str) -> tuple[GraphNode, _Position]:
        """Returns a layer's node and position; adds it, and the layers around it, if it is new."""
        if path not in self._drawn_layers:
            layer, holder = self._layers[path]
            outer, position = self._layer(holder)
            drawn = _describe_layer(layer)
            outer.children.append(drawn)
            self._drawn_layers[path] = drawn, [*position, (outer, len(outer.children) - 1)]
        return self._drawn_layers[path]

    def _connect(self, value: Value, reader: _Position) -> None:
        """Draws the edge from a value to its reader, in and out of the layers on the way."""
        producer = self._position_of_node.get(id(value.node))
        if producer is None:
            if reader:
                _add_edge(reader[-1][0], "const", reader[-1][1])
            return
        pairs = zip(producer, reader, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if reader and shared < min(len(producer), len(reader)):
            outer, start = producer[shared]
            _add_edge(outer, start, reader[shared][1])
            shared += 1
            for inner, index in reader[shared:]:
                _add_edge(inner, "in", index)
        for inner, index in producer[shared:]:
            _add_edge(inner, index, "out")
            if (id(inner), value) not in self._exits:
                self._exits.add((id(inner), value))
                inner.out.append(_describe(value))


def _count_flops(node: Node) -> int | None:
    """Returns the floating-point operations of products, or `None` if sizes are not known."""
    shapes = [*(value.shape for value in node.values()), *(spec.shape for spec in node.outputs)]
    return None if any(None in shape for shape in shapes) else 2 * multiply_adds(node)


def _describe_layer(layer: keras.Layer) -> GraphNode:
    params = sum(math.prod(variable.shape) for variable in layer.weights)
    return GraphNode("layer", layer.name, type(layer).__name__, path_of(layer), params)


def _describe(value: Any) -> tuple[list[int], str]:
    return list(value.shape), value.dtype


def _add_edge(layer: GraphNode, start: End, end: End) -> None:
    if start != end and (start, end) not in layer.edges:
        layer.edges.append((start, end))


def _sum_operations(node: GraphNode) -> int:
    if node.children:
        node.flops = sum(map(_sum_operations, node.children))
    return node.flops or 0
