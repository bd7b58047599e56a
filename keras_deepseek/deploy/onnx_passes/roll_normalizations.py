"""A pass that converts repeated normalization steps to an ONNX `Loop`.

Some builders compute a sum anew for each use, which doubles the work with each repetition.
TensorRT-RTX needed 0.5 MB for four, 50 MB for eight and 555 MB for ten rounds, and never finished
the 39 of `ManifoldConstrainedHyperConnections`. It builds the body of a loop once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_deepseek.deploy.onnx_passes.graph_view import GraphView

_COMBINING = ("Div", "Mul", "Sub", "Add")
_LONGEST_STEP = 6
"""The largest number of nodes between a tensor and its divisor."""
_LONGEST_PERIOD = 4
"""The largest number of steps in a round."""
_LEAST_ROUNDS = 3


class _Step(NamedTuple):
    """One step of a repeated normalization, such as `x / f(x)`, with its input and output tensors.

    Steps that compute the same have equal keys.
    """

    start: str
    end: str
    nodes: list[Any]
    key: tuple[Any, ...]


def roll_normalizations(view: GraphView) -> int:
    """Replaces three or more equal rounds of `x / f(x)` steps by a `Loop`.

    A round has up to four steps.
    """
    rounds_by_result = {}
    for steps in _chains(view):
        period, num_rounds = _find_rounds([step.key for step in steps])
        rolled = steps[: period * num_rounds]
        if rolled and _keeps_shape(view, rolled):
            rounds_by_result[rolled[-1].end] = (rolled[:period], num_rounds)

    def make_loop(view: GraphView, node: Any) -> list[Any] | None:
        steps_and_rounds = rounds_by_result.get(node.output[0])
        return None if steps_and_rounds is None else [_make_loop(view, node, *steps_and_rounds)]

    # `rewrite` also removes the nodes that nothing uses any more.
    return view.rewrite(make_loop, *_COMBINING)


def _chains(view: GraphView) -> Iterator[list[_Step]]:
    """Yields maximal chains of normalization steps whose results only the next step uses."""
    steps = [step for node in view.nodes(*_COMBINING) if (step := _read_step(view, node))]
    by_start = {step.start: step for step in steps}
    ends = {step.end for step in steps}
    for step in steps:
        if step.start in ends and view.num_users(step.start) == _uses(step):
            continue
        chain = [step]
        while (following := by_start.get(chain[-1].end)) is not None:
            if view.num_users(following.start) != _uses(following):
                break
            chain.append(following)
        yield chain


def _uses(step: _Step) -> int:
    return sum(name == step.start for node in step.nodes for name in node.input)


def _read_step(view: GraphView, last: Any) -> _Step | None:
    for index, start in enumerate(last.input):
        nodes = _read_function(view, last.input[1 - index], start)
        if nodes and view.are_only_used_within(nodes, last):
            nodes.append(last)
            key = tuple(_describe(view, node) for node in nodes)
            return _Step(start, last.output[0], nodes, (*key, index))
    return None


def _read_function(view: GraphView, name: str, start: str) -> list[Any]:
    """Returns the nodes that compute a tensor from `start` and constants alone, `[]` otherwise."""
    nodes: list[Any] = []
    while name != start:
        node = view.any_producer(name)
        if node is None or len(nodes) == _LONGEST_STEP or len(node.output) != 1:
            return []
        inputs = [tensor for tensor in node.input if tensor and view.constant(tensor) is None]
        if len(inputs) != 1 or any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            return []
        nodes.insert(0, node)
        (name,) = inputs
    return nodes if any(node.op_type.startswith("Reduce") for node in nodes) else []


def _describe(view: GraphView, node: Any) -> tuple[Any, ...]:
    constants = []
    for name in node.input:
        value = view.constant(name) if name else None
        constants.append(None if value is None else (value.dtype, value.shape, value.tobytes()))
    attributes = sorted(entry.SerializeToString() for entry in node.attribute)
    return node.op_type, node.domain, tuple(attributes), tuple(constants)


def _find_rounds(keys: list[tuple[Any, ...]]) -> tuple[int, int]:
    """Returns the number of steps per round and of equal rounds at the start of a chain."""
    for period in range(1, _LONGEST_PERIOD + 1):
        num_same = next(
            (index for index in range(period, len(keys)) if keys[index] != keys[index - period]),
            len(keys),
        )
        if num_same // period >= _LEAST_ROUNDS:
            return period, num_same // period
    return 0, 0


def _keeps_shape(view: GraphView, steps: list[_Step]) -> bool:
    """Returns True if the rolled-up steps leave a tensor's rank and static sizes unchanged."""
    start_shape, end_shape = view.shape(steps[0].start), view.shape(steps[-1].end)
    return (
        start_shape is not None
        and end_shape is not None
        and len(start_shape) == len(end_shape)
        and all(
            start_size == end_size
            for start_size, end_size in zip(start_shape, end_shape, strict=True)
            if isinstance(start_size, int) or isinstance(end_size, int)
        )
    )


def _make_loop(view: GraphView, last: Any, steps: list[_Step], num_rounds: int) -> Any:
    name = f"{last.output[0]}__rounds"
    start, carried = steps[0].start, f"{name}_x"
    nodes = [type(node).FromString(node.SerializeToString()) for s in steps for node in s.nodes]
    for node in nodes:
        node.input[:] = [carried if tensor == start else tensor for tensor in node.input]
        node.output[0] = f"{name}_{node.output[0]}"
    output_names = {node.output[0] for node in nodes}
    for node in nodes:
        node.input[:] = [f"{name}_{x}" if f"{name}_{x}" in output_names else x for x in node.input]
    body = _make_body(view, name, nodes, carried, view.dtype(start), view.shape(start))
    times = view.add_weight(np.array(num_rounds, "int64"), f"{name}_times")
    always = view.add_weight(np.array(np.True_), f"{name}_always")
    return view.node("Loop", [times, always, start], last.output[0], body=body)


def _make_body(
    view: GraphView, name: str, nodes: list[Any], carried: str, dtype: int, shape: Any
) -> Any:
    """Returns the body of a `Loop`. The next round gets the last node's result as `carried`."""
    helper, value = view.onnx.helper, view.onnx.helper.make_tensor_value_info
    boolean, whole = view.onnx.TensorProto.BOOL, view.onnx.TensorProto.INT64
    goes_on, kept_on = f"{name}_goes_on", f"{name}_kept_on"
    inputs = [value(f"{name}_index", whole, []), value(goes_on, boolean, [])]
    return helper.make_graph(
        [view.node("Identity", [goes_on], kept_on), *nodes],
        f"{name}_body",
        [*inputs, value(carried, dtype, shape)],
        [value(kept_on, boolean, []), value(nodes[-1].output[0], dtype, shape)],
    )
