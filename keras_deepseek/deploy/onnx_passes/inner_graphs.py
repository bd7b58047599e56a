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


def make_loop_body(
    onnx: Any, name: str, nodes: list[Any], carried: str, result: str, dtype: int, shape: Any = None
) -> Any:
    """Makes the body of a `Loop` whose nodes compute the tensor `result` from `carried`.

    The next round gets the result as `carried`. Nodes read the number of the round, from 0 on, as
    `NAME_index`.
    """
    make, value = onnx.helper, onnx.helper.make_tensor_value_info
    boolean, whole = onnx.TensorProto.BOOL, onnx.TensorProto.INT64
    goes_on, kept_on = f"{name}_goes_on", f"{name}_kept_on"
    inputs = [value(f"{name}_index", whole, []), value(goes_on, boolean, [])]
    return make.make_graph(
        [make.make_node("Identity", [goes_on], [kept_on]), *nodes],
        f"{name}_body",
        [*inputs, value(carried, dtype, shape)],
        [value(kept_on, boolean, []), value(result, dtype, shape)],
    )
