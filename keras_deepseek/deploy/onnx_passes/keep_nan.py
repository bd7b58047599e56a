"""A pass that keeps NaN in recurrent layers, where onnxruntime's kernel loses it.

onnxruntime's `LSTM` limits the sums before its activations, which turns NaN into a number. From
the step of a NaN on, all values of a row are NaN in Keras and in ONNX's definition.
"""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute


def keep_nan(view: GraphView) -> int:
    """Makes the outputs of each `LSTM` NaN behind a NaN of its input; returns how many there are.

    Adds 0 or NaN by row and step, which costs a sum over the input.
    """
    return view.rewrite(_add_nan, "LSTM")


def _add_nan(view: GraphView, node: Any) -> list[Any] | None:
    x, name = node.input[0], f"{''.join(node.output)}__nan"
    dtype = view.dtype(x)
    if not dtype or attribute(node, "layout", 0):
        return None
    number = view.onnx.helper.tensor_dtype_to_np_dtype(dtype)
    nodes: list[Any] = []

    def add(op_type: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(view.node(op_type, [*inputs], f"{name}_{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    def weight(value: Any, kind: Any = np.int64) -> str:
        array: Array = np.asarray(value, kind)
        return view.add_weight(array, f"{name}_of_{array.dtype}")

    # Infinities of both signs count as a NaN, which they nearly always become in the gates.
    steps = add("Unsqueeze", add("ReduceSum", x, weight([2])), weight([1]))
    steps = add("Where", add("IsNaN", steps), weight(np.nan, number), weight(0, number))
    direction = attribute(node, "direction", b"forward")
    sides = {b"forward": (0,), b"reverse": (1,)}.get(direction, (0, 1))
    sums = [add("CumSum", steps, weight(0), reverse=side) for side in sides]
    of_sequence = add("Concat", *sums, axis=1) if len(sums) > 1 else sums[0]
    of_state = add("ReduceSum", steps, weight([0]), keepdims=0)
    recurrence = type(node).FromString(node.SerializeToString())
    nodes.insert(0, recurrence)
    for index, output in enumerate(node.output):
        if output:
            recurrence.output[index] = f"{name}_in_{index}"
            nan = of_state if index else of_sequence
            nodes.append(view.node("Add", [recurrence.output[index], nan], output))
    return nodes
