"""Handlers for TensorFlow operators that tf2onnx lacks or writes wrongly.

tf2onnx calls a handler with the graph, the node to replace, its name, and the handler's arguments,
of which there are none.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_deepseek.backend.export.onnx_types import BOOL, FLOAT, INT32, INT64
from keras_deepseek.backend.export.tf2onnx_integers import INTEGER_HANDLERS
from keras_deepseek.backend.export.tf2onnx_nodes import replace_node


def convert_erfc(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Erfc` as `1 - Erf(x)`."""
    one = _constant(graph, node, name, 1)
    erf = graph.make_node("Erf", [node.input[0]])
    return replace_node(graph, node, name, "Sub", [one, erf.output[0]])


def convert_expm1(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Expm1` as `tanh(x / 2) (Exp(x) + 1)`, which is exact for small numbers."""
    half = graph.make_node("Mul", [node.input[0], _constant(graph, node, name, 0.5)])
    exponential = graph.make_node("Exp", [node.input[0]])
    following = graph.make_node("Add", [exponential.output[0], _constant(graph, node, name, 1)])
    tangent = graph.make_node("Tanh", [half.output[0]])
    return replace_node(graph, node, name, "Mul", [tangent.output[0], following.output[0]])


def convert_log1p(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Log1p` of small numbers as `Log(u) x / (u - 1)` with `u = x + 1`.

    `u` has lost part of `x`. It has lost it in both factors, so that the errors cancel.
    """
    (x,) = node.input

    def add(operator: str, *inputs: str) -> str:
        return str(graph.make_node(operator, list(inputs)).output[0])

    one, zero, half = (_constant(graph, node, name, value) for value in (1, 0, 0.5))
    following = add("Add", x, one)
    logarithm, kept = add("Log", following), add("Sub", following, one)
    small = add("Mul", logarithm, add("Div", x, kept))
    small = add("Where", add("Equal", kept, zero), x, small)
    is_small = add("Less", add("Abs", x), half)
    return replace_node(graph, node, name, "Where", [is_small, small, logarithm])


def convert_one_hot(graph: Any, node: Any, _name: str, _: list[Any]) -> Any:
    """Writes `OneHot` with zeros for negative classes, which ONNX would count from the end."""
    from tf2onnx.onnx_opset.tensor import OneHot

    indices, depth = node.input[:2]
    dtype = graph.get_dtype(indices)
    zero = graph.make_const(f"{node.name}/zero", np.zeros((), _NUMPY_INTEGERS[dtype])).output[0]
    beyond = graph.make_node("Cast", [depth], attr={"to": dtype}).output[0]
    is_below = graph.make_node("Less", [indices, zero]).output[0]
    kept = graph.make_node("Where", [is_below, beyond, indices]).output[0]
    graph.replace_input(node, indices, kept, 0)
    return OneHot.version_11(graph, node)


def convert_select(graph: Any, node: Any, _name: str, _: list[Any]) -> Any:
    """Writes `Select` as `Where`: tf2onnx multiplies by 0 and 1, which turns infinity into NaN."""
    from tf2onnx.onnx_opset.controlflow import Select

    node.set_attr("handles_nan", 1)
    return Select.version_9(graph, node)


def convert_transposed_convolution(graph: Any, node: Any, _name: str, _: list[Any]) -> Any:
    """Makes a transposed convolution crop at the end: tf2onnx does not if a size is unknown."""
    from tf2onnx.onnx_opset.nn import ConvTranspose

    ConvTranspose.version_11(graph, node)
    if node.get_attr("output_shape"):
        node.set_attr("auto_pad", "SAME_UPPER")
    return node


def convert_sign(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Sign`: tf2onnx compares with zero, which turns NaN into zero."""
    return replace_node(graph, node, name, "Sign", list(node.input))


def convert_segment_sum(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes a segment sum of numbers as a comparison of each number with each segment.

    tf2onnx sorts them and uses `Unique`, which TensorRT lacks. It still does so for rows.
    """
    from tf2onnx.onnx_opset.reduction import SegmentSum

    numbers, segments, num_segments = node.input
    if graph.get_rank(numbers) != 1 or graph.get_rank(segments) != 1:
        return SegmentSum.version_11(graph, node)
    dtype = graph.get_dtype(numbers)

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        return str(graph.make_node(operator, list(inputs), attr=attributes).output[0])

    def constant(what: str, value: Any) -> str:
        return str(graph.make_const(f"{name}/{what}", np.asarray(value, "int64")).output[0])

    places = add(
        "Range", constant("zero", 0), add("Cast", num_segments, to=INT64), constant("one", 1)
    )
    columns = add("Unsqueeze", add("Cast", segments, to=INT64), constant("last", [1]))
    belongs = add("Cast", add("Equal", columns, places), to=dtype)
    parts = add("Mul", belongs, add("Unsqueeze", numbers, constant("axis", [1])))
    return replace_node(graph, node, name, "ReduceSum", [parts, constant("first", [0])], keepdims=0)


def convert_dynamic_update_slice(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `XlaDynamicUpdateSlice` as a choice between the operand and the padded update.

    As in XLA, an update that begins too far out is moved inwards, so that it fits.
    """
    operand, update, starts = node.input
    dtype = graph.get_dtype(operand)

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        return str(graph.make_node(operator, list(inputs), attr=attributes).output[0])

    sizes, update_sizes = add("Shape", operand), add("Shape", update)
    room = add("Sub", sizes, update_sizes)
    zero = graph.make_const(f"{name}/zero", np.zeros((), "int64")).output[0]
    before = add("Min", add("Max", add("Cast", starts, to=INT64), zero), room)
    pads = add("Concat", before, add("Sub", room, before), axis=0)
    # Older versions of `Pad` and onnxruntime's `Where` take no booleans.
    padded = add("Pad", add("Cast", update, to=FLOAT) if dtype == BOOL else update, pads)
    ones = graph.make_const(f"{name}/one", np.ones((), "float32")).output[0]
    mask = add("Cast", add("Pad", add("Expand", ones, update_sizes), pads), to=BOOL)
    if dtype != BOOL:
        return replace_node(graph, node, name, "Where", [mask, padded, operand])
    around = add("And", operand, add("Not", mask))
    return replace_node(graph, node, name, "Or", [add("Cast", padded, to=BOOL), around])


def convert_bitwise_and(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes the test of a float's sign bit, as in Keras's `argmax`, as a comparison.

    ONNX can't read the bits of a float before opset 26. The sign of a NaN is lost.
    """
    bits = next((each for each in node.inputs if each.type == "Bitcast"), None)
    masks = [each.get_tensor_value() for each in node.inputs if each.is_const()]
    if bits is None or masks != [_SIGN_BIT]:
        return replace_node(graph, node, name, "BitwiseAnd", list(node.input))

    def constant(what: str, value: Any) -> str:
        return str(graph.make_const(f"{name}/{what}", np.asarray(value)).output[0])

    x = graph.make_node("Cast", [bits.input[0]], attr={"to": FLOAT}).output[0]
    one, zero = constant("one", np.float32(1)), constant("zero", np.float32(0))
    # The inverse of negative zero is negative infinity.
    inverse = graph.make_node("Div", [one, x]).output[0]
    below, inverse_below = (
        graph.make_node("Less", [each, zero]).output[0] for each in (x, inverse)
    )
    is_negative = graph.make_node("Or", [below, inverse_below]).output[0]
    choices = [constant("bit", np.int32(_SIGN_BIT)), constant("none", np.int32(0))]
    return replace_node(graph, node, name, "Where", [is_negative, *choices])


def convert_bound(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `LowerBound` and `UpperBound` as a count of the values before each value."""
    comparison = "LessOrEqual" if node.type == "UpperBound" else "Less"
    dtype = graph.get_dtype(node.output[0])
    first, last = (
        str(graph.make_const(f"{name}/axis_{axis}", np.array([axis], "int64")).output[0])
        for axis in (1, 2)
    )
    ordered = graph.make_node("Unsqueeze", [node.input[0], first]).output[0]
    values = graph.make_node("Unsqueeze", [node.input[1], last]).output[0]
    stands_before = graph.make_node(comparison, [ordered, values]).output[0]
    counted = graph.make_node("Cast", [stands_before], attr={"to": dtype}).output[0]
    return replace_node(graph, node, name, "ReduceSum", [counted, last], keepdims=0)


HANDLERS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "BitwiseAnd": (convert_bitwise_and, []),
    "Conv2DBackpropInput": (convert_transposed_convolution, []),
    "Conv3DBackpropInputV2": (convert_transposed_convolution, []),
    "Erfc": (convert_erfc, []),
    "Expm1": (convert_expm1, []),
    "Log1p": (convert_log1p, []),
    "LowerBound": (convert_bound, []),
    "OneHot": (convert_one_hot, []),
    "Select": (convert_select, []),
    "SelectV2": (convert_select, []),
    "Sign": (convert_sign, []),
    "UnsortedSegmentSum": (convert_segment_sum, []),
    "UpperBound": (convert_bound, []),
    "XlaDynamicUpdateSlice": (convert_dynamic_update_slice, []),
    **INTEGER_HANDLERS,
}
"""Handlers by operator, for the argument `custom_op_handlers` of tf2onnx."""

_SIGN_BIT = -(2**31)
_NUMPY_INTEGERS = {INT32: "int32", INT64: "int64"}


def _constant(graph: Any, node: Any, name: str, value: float) -> str:
    """Adds a constant with the dtype of a node's input, and returns its name."""
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    dtype = map_onnx_to_numpy_type(graph.get_dtype(node.input[0]))
    return str(graph.make_const(make_name(f"{name}/constant"), np.full((), value, dtype)).output[0])
