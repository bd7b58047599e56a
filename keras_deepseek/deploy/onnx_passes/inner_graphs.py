"""Subgraphs of ONNX nodes: the branches of an `If`, the body of a `Loop` or a `Scan`."""

from collections.abc import Callable, Iterator
from typing import Any


def inner_graphs(node: Any) -> Iterator[Any]:
    """Yields the subgraphs of a node, in order."""
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def all_nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from all_nodes(inner)


def replace_inputs(graph: Any, source: Callable[[str], str]) -> None:
    """Renames node inputs in a graph and its subgraphs by the function `source`, in place.

    Outputs keep their names.
    """
    for node in graph.node:
        node.input[:] = [source(name) for name in node.input]
        for inner in inner_graphs(node):
            replace_inputs(inner, source)
            for value in inner.output:
                value.name = source(value.name)
