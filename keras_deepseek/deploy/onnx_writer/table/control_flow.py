"""Branches and loops as ONNX nodes, whose bodies are the inner graphs of the operations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import import_package
from keras_deepseek.deploy.onnx_writer.bodies import add_scan, make_body
from keras_deepseek.deploy.onnx_writer.table.shapes import numbers, reverse
from keras_deepseek.deploy.onnx_writer.writer import TYPES, Writer, handles
from keras_deepseek.graph.ir import Node, Value


@handles("Branch")
def _branch(writer: Writer, node: Node, condition: Value, *captured: list[Value]) -> list[str]:
    bodies = [
        make_body(writer, graph, values, shares_sizes=True)
        for graph, values in zip(node.graphs, captured, strict=True)
    ]
    return writer.add_several(
        "If",
        writer.name(condition),
        outputs=len(node.outputs),
        then_branch=bodies[0],
        else_branch=bodies[1],
    )


@handles("ForEach")
def _for_each(
    writer: Writer, node: Node, carry: list[Value], sequences: list[Value], captured: list[Value]
) -> list[str]:
    operation = node.operation
    body = make_body(writer, node.graphs[0], captured, shares_sizes=True)
    states, inputs = (list(map(writer.name, values)) for values in (carry, sequences))
    if writer.is_free(sequences[0].shape[0]):
        names = _loop_over(writer, body, states, inputs, operation.is_backwards)
    else:
        names = add_scan(writer, body, states, inputs, is_backwards=operation.is_backwards)
    last, results = names[: len(carry)], names[len(carry) :]
    if operation.is_backwards:
        results = [reverse(writer, name, [0]) for name in results]
    for index, shape in enumerate(operation.shapes):
        if writer.is_free(shape[0]) and any(map(writer.is_free, shape[1:])):
            # After no steps, ONNX Runtime has 0 for each size that it does not know.
            sizes = numbers(writer, shape)
            results[index] = writer.add("Reshape", results[index], sizes, allowzero=1)
    return [*last, *results]


def _loop_over(
    writer: Writer, body: Any, states: list[str], sequences: list[str], is_backwards: bool
) -> list[str]:
    """Adds a `Loop` over sequences that may be empty, which `Scan` in ONNX Runtime does not take.

    It gathers the elements by their index.
    """
    size = writer.add("Squeeze", writer.shape_of(sequences[0], 0), writer.integers(0))
    prefix = body.output[0].name
    index, before, after = (f"{prefix}/{name}" for name in ("index", "before", "after"))
    position = index
    make_node = import_package("onnx.helper").make_node
    nodes = [make_node("Identity", [before], [after])]
    if is_backwards:
        last, position = writer.add("Sub", size, writer.constant(np.int64(1))), f"{prefix}/position"
        nodes.append(make_node("Sub", [last, index], [position]))
    nodes += [
        make_node("Gather", [sequence, position], [element.name], axis=0)
        for sequence, element in zip(sequences, body.input[len(states) :], strict=True)
    ]
    return _add_loop(writer, body, size, writer.tensor(1, "bool"), states, nodes, [after])


@handles("While")
def _while(
    writer: Writer,
    node: Node,
    condition: Value,
    limit: Any,
    variables: list[Value],
    captured: list[Value],
) -> list[str]:
    body = make_body(writer, node.graphs[0], captured, shares_sizes=True)
    most = None if limit is None else writer.tensor(limit, "int64")
    return _add_loop(writer, body, most, writer.name(condition), list(map(writer.name, variables)))


def _add_loop(
    writer: Writer,
    body: Any,
    limit: str | None,
    condition: str,
    states: Sequence[str],
    nodes: Sequence[Any] = (),
    conditions: Sequence[str] = (),
) -> list[str]:
    """Adds a loop of at most `limit` steps, while a condition is true.

    Of the inputs of the body the states remain; `nodes` compute the others. `conditions` has the
    name of the condition after a step, unless that is the first output of the body.
    """
    describe = import_package("onnx.helper").make_tensor_value_info
    prefix = body.output[0].name
    scalars = [
        describe(f"{prefix}/index", TYPES["int64"], []),
        describe(f"{prefix}/before", TYPES["bool"], []),
    ]
    after = [describe(name, TYPES["bool"], []) for name in conditions]
    for field, entries in (
        (body.input, [*scalars, *body.input[: len(states)]]),
        (body.output, [*after, *body.output]),
        (body.node, [*nodes, *body.node]),
    ):
        del field[:]
        field.extend(entries)
    count = len(body.output) - 1
    return writer.add_several("Loop", limit, condition, *states, outputs=count, body=body)
