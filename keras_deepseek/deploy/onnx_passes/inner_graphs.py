"""The graphs inside of a node: the branches of an `If`, the body of a `Loop` or a `Scan`."""

from collections.abc import Iterator
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
