"""Functions that add or replace nodes in a tf2onnx graph."""

from typing import Any

import numpy as np


def add_constant(graph: Any, name: str, value: Any, dtype: Any = None) -> str:
    """Adds a constant to a tf2onnx graph, and returns its output's name."""
    return str(graph.make_const(name, np.asarray(value, dtype)).output[0])


def add_node(graph: Any, operator: str, inputs: list[str], **attributes: Any) -> str:
    """Adds a node with one output to a tf2onnx graph, and returns the output's name."""
    return str(graph.make_node(operator, inputs, attr=attributes).output[0])


def replace_node(
    graph: Any, node: Any, name: str, operator: str, inputs: list[str], **attributes: Any
) -> Any:
    """Replaces a node of a tf2onnx graph by one with another operator."""
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
