"""The graphs inside of a node: the branches of an `If`, the body of a `Loop` or a `Scan`."""

from collections.abc import Callable, Iterator
from typing import Any


def inner_graphs(node: Any) -> Iterator[Any]:
    """Yields the graphs that a node holds, in their order.

    Args:
        node: `onnx.NodeProto`.
    """
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def replace_inputs(graph: Any, source: Callable[[str], str]) -> None:
    """Makes all nodes of a graph, and of those inside it, read other tensors.

    Args:
        graph: `onnx.GraphProto`, changed in place. Its own outputs keep their names.
        source: Function from the name of a tensor to the one to read in its place.
    """
    for node in graph.node:
        node.input[:] = [source(name) for name in node.input]
        for inner in inner_graphs(node):
            replace_inputs(inner, source)
            for value in inner.output:
                value.name = source(value.name)
