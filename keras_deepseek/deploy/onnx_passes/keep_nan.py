"""A pass that keeps NaN in recurrent layers.

onnxruntime's `LSTM` and `GRU` limit the sums before their activations, which turns NaN into a
number, as does the `Relu` of its `RNN`. From the step of a NaN on, all values of a row are NaN in
Keras and in ONNX's definition.
"""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView, attribute


def keep_nan(view: GraphView) -> int:
    """Makes outputs of recurrent operators NaN from a NaN of the input on; returns their number.

    Adds 0 or NaN by row and step, which costs a sum over the input.
    """
    return view.rewrite(_add_nan, "LSTM", "GRU", "RNN")


def _add_nan(view: GraphView, node: Any) -> list[Any] | None:
    """Returns a recurrent node, and nodes that add 0 or NaN to its outputs; `None` if it can't."""
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

    # The input is (steps, batch, features). A sum over features is NaN if one of them is.
    # Infinities of both signs count as a NaN, which they nearly always become in the gates.
    steps = add("Unsqueeze", add("ReduceSum", x, weight([2])), weight([1]))
    steps = add("Where", add("IsNaN", steps), weight(np.nan, number), weight(0, number))
    direction = attribute(node, "direction", b"forward")
    reverses = {b"forward": (0,), b"reverse": (1,)}.get(direction, (0, 1))
    sums = [add("CumSum", steps, weight(0), reverse=reverse) for reverse in reverses]
    nan_of_sequence = add("Concat", *sums, axis=1) if len(sums) > 1 else sums[0]
    nan_of_state = add("ReduceSum", steps, weight([0]), keepdims=0)
    recurrence = type(node).FromString(node.SerializeToString())
    nodes.insert(0, recurrence)
    for index, output in enumerate(node.output):
        if output:
            recurrence.output[index] = f"{name}_in_{index}"
            # Output 0 has all steps, and is NaN from one on. The others are the last states.
            nan = nan_of_state if index else nan_of_sequence
            nodes.append(view.node("Add", [recurrence.output[index], nan], output))
    return nodes
