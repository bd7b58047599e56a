"""Functions that put nodes into the graph of tf2onnx."""

from typing import Any


def add_node(graph: Any, operator: str, inputs: list[str], **attributes: Any) -> str:
    """Adds a node with one output, and returns the name of the output."""
    return str(graph.make_node(operator, inputs, attr=attributes).output[0])


def replace_node(
    graph: Any, node: Any, name: str, operator: str, inputs: list[str], **attributes: Any
) -> Any:
    """Replaces a node by another operator."""
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    return graph.make_node(
        operator,
        inputs,
        attr=attributes,
        name=name,
        outputs=outputs,
        shapes=shapes,
        dtypes=dtypes,
    )
