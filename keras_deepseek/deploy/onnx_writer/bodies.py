"""Bodies: graphs inside a node of an ONNX graph, such as the step of a loop."""

from collections.abc import Sequence
from typing import Any

from keras_deepseek.deploy.onnx_passes.graph_view import import_package
from keras_deepseek.deploy.onnx_writer.fold import drop_unused, fold_constants
from keras_deepseek.deploy.onnx_writer.writer import TYPES, Writer
from keras_deepseek.graph.ir import Graph, Value


def make_body(
    writer: Writer, graph: Graph, captured: Sequence[Value] = (), *, shares_sizes: bool = False
) -> Any:
    """Returns the `onnx.GraphProto` of a graph.

    Args:
        writer: The writer of the graph around.
        graph: The graph.
        captured: The values from around that are its last inputs. The body reads them as they are.
        shares_sizes: True if the sizes in the graph are those of the graph around.
    """
    body = writer.inner(graph, shares_sizes=shares_sizes)
    count = len(graph.inputs) - len(captured)
    inputs = [Value(node) for node in graph.inputs]
    names = [f"{body.prefix}{index}" for index in range(count)]
    for value, name in zip(inputs[:count], names, strict=True):
        body.put(value, name)
    for value, outer_value in zip(inputs[count:], captured, strict=True):
        body.put_captured(value, outer_value)
    body.write_nodes()
    # Each output has a name of its own.
    outputs = [body.add("Identity", body.name(value)) for value in graph.outputs]
    used = drop_unused(body.nodes, outputs)
    nodes = fold_constants(used, writer.constants.arrays, writer.opset, outputs)

    helper = import_package("onnx.helper")

    def describe(name: str, value: Value) -> Any:
        shape = [None if body.is_free(size) else int(size) for size in value.shape]
        return helper.make_tensor_value_info(name, TYPES[value.dtype], shape)

    return helper.make_graph(
        nodes,
        "body",
        [describe(name, value) for name, value in zip(names, inputs, strict=False)],
        [describe(name, value) for name, value in zip(outputs, graph.outputs, strict=True)],
    )


def add_scan(
    writer: Writer,
    body: Any,
    states: Sequence[str],
    sequences: Sequence[str],
    *,
    is_backwards: bool = False,
) -> list[str]:
    """Adds a loop over the first axis of sequences, which must not be empty in ONNX Runtime.

    The body has the inputs `[*states, *steps]` and the outputs `[*states, *outputs]`. Returns the
    names of the last states, and of the outputs of all steps in the order of computation.
    """
    return writer.add_several(
        "Scan",
        *states,
        *sequences,
        outputs=len(body.output),
        body=body,
        num_scan_inputs=len(sequences),
        scan_input_directions=[int(is_backwards)] * len(sequences),
    )
