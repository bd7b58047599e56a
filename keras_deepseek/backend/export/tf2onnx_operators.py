"""Handlers for TensorFlow operators that tf2onnx lacks or writes wrongly.

tf2onnx calls a handler with the graph, the node to replace, its name, and the handler's arguments,
of which there are none.
"""

from collections.abc import Callable
from typing import Any

from keras_deepseek.backend.export.tf2onnx_integers import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    INTEGER_HANDLERS,
    add_constant,
    add_node,
    replace_node,
)


def convert_erfc(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Erfc` as `1 - Erf(x)`."""
    unit = _constant(graph, node, name, 1)
    erf = add_node(graph, "Erf", [node.input[0]])
    return replace_node(graph, node, name, "Sub", [unit, erf])


def convert_expm1(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Expm1` as `tanh(x / 2) (Exp(x) + 1)`, which is exact for small numbers."""
    half = add_node(graph, "Mul", [node.input[0], _constant(graph, node, name, 0.5)])
    exponential = add_node(graph, "Exp", [node.input[0]])
    following = add_node(graph, "Add", [exponential, _constant(graph, node, name, 1)])
    return replace_node(graph, node, name, "Mul", [add_node(graph, "Tanh", [half]), following])


def convert_log1p(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Log1p` of small numbers as `Log(u) x / (u - 1)` with `u = x + 1`.

    `u` has lost part of `x`. It has lost it in both factors, so that the errors cancel.
    """
    (x,) = node.input
    add = _adder(graph)
    unit, zero, half = (_constant(graph, node, name, value) for value in (1, 0, 0.5))
    following = add("Add", x, unit)
    logarithm, increment = add("Log", following), add("Sub", following, unit)
    small = add("Mul", logarithm, add("Div", x, increment))
    small = add("Where", add("Equal", increment, zero), x, small)
    is_small = add("Less", add("Abs", x), half)
    return replace_node(graph, node, name, "Where", [is_small, small, logarithm])


def convert_one_hot(graph: Any, node: Any, _name: str, _: list[Any]) -> Any:
    """Writes `OneHot` with zeros for negative classes, which ONNX would count from the end."""
    from tf2onnx.onnx_opset.tensor import OneHot

    indices, depth = node.input[:2]
    dtype = graph.get_dtype(indices)
    zero = add_constant(graph, f"{node.name}/zero", 0, _NUMPY_INTEGERS[dtype])
    beyond = add_node(graph, "Cast", [depth], to=dtype)
    is_below = add_node(graph, "Less", [indices, zero])
    nonnegative = add_node(graph, "Where", [is_below, beyond, indices])
    graph.replace_input(node, indices, nonnegative, 0)
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
    dtype, add = graph.get_dtype(numbers), _adder(graph)

    def constant(what: str, value: Any) -> str:
        return add_constant(graph, f"{name}/{what}", value, "int64")

    segment_ids = add(
        "Range", constant("zero", 0), add("Cast", num_segments, to=INT64), constant("one", 1)
    )
    columns = add("Unsqueeze", add("Cast", segments, to=INT64), constant("last", [1]))
    belongs = add("Cast", add("Equal", columns, segment_ids), to=dtype)
    parts = add("Mul", belongs, add("Unsqueeze", numbers, constant("axis", [1])))
    return replace_node(graph, node, name, "ReduceSum", [parts, constant("first", [0])], keepdims=0)


def convert_dynamic_update_slice(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `XlaDynamicUpdateSlice` as a choice between the operand and the padded update.

    As in XLA, an update that begins too far out is moved inwards, so that it fits.
    """
    operand, update, starts = node.input
    dtype, add = graph.get_dtype(operand), _adder(graph)
    sizes, update_sizes = add("Shape", operand), add("Shape", update)
    room = add("Sub", sizes, update_sizes)
    zero = add_constant(graph, f"{name}/zero", 0, "int64")
    offsets = add("Min", add("Max", add("Cast", starts, to=INT64), zero), room)
    pads = add("Concat", offsets, add("Sub", room, offsets), axis=0)
    # Older versions of `Pad` and onnxruntime's `Where` take no booleans.
    padded = add("Pad", add("Cast", update, to=FLOAT) if dtype == BOOL else update, pads)
    ones = add_constant(graph, f"{name}/one", 1, "float32")
    mask = add("Cast", add("Pad", add("Expand", ones, update_sizes), pads), to=BOOL)
    if dtype != BOOL:
        return replace_node(graph, node, name, "Where", [mask, padded, operand])
    around = add("And", operand, add("Not", mask))
    return replace_node(graph, node, name, "Or", [add("Cast", padded, to=BOOL), around])


def convert_bitwise_and(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes the test of a float's sign bit, as in Keras's `argmax`, as a comparison.

    ONNX can't read the bits of a float before opset 26. The sign of a NaN is lost.
    """
    bits = next((input_node for input_node in node.inputs if input_node.type == "Bitcast"), None)
    masks = [input_node.get_tensor_value() for input_node in node.inputs if input_node.is_const()]
    if bits is None or masks != [_SIGN_BIT]:
        return replace_node(graph, node, name, "BitwiseAnd", list(node.input))

    x = add_node(graph, "Cast", [bits.input[0]], to=FLOAT)
    unit, zero = (add_constant(graph, f"{name}/{value}", value, "float32") for value in (1, 0))
    # The inverse of negative zero is negative infinity.
    inverse = add_node(graph, "Div", [unit, x])
    is_below = [add_node(graph, "Less", [number, zero]) for number in (x, inverse)]
    bit = add_constant(graph, f"{name}/bit", _SIGN_BIT, "int32")
    none = add_constant(graph, f"{name}/none", 0, "int32")
    return replace_node(graph, node, name, "Where", [add_node(graph, "Or", is_below), bit, none])


def convert_bound(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `LowerBound` and `UpperBound` as a count of the values before each value.

    As in TensorFlow, a NaN has no value before it to the left, and all of them to the right.
    """
    first, last = (add_constant(graph, f"{name}/axis_{axis}", [axis], "int64") for axis in (1, 2))
    ordered = add_node(graph, "Unsqueeze", [node.input[0], first])
    values = add_node(graph, "Unsqueeze", [node.input[1], last])
    if node.type == "UpperBound":
        return _count_to_the_right(graph, node, name, ordered, values, last)
    stands_before = add_node(graph, "Less", [ordered, values])
    counts = add_node(graph, "Cast", [stands_before], to=graph.get_dtype(node.output[0]))
    return replace_node(graph, node, name, "ReduceSum", [counts, last], keepdims=0)


def convert_bucketize(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Bucketize`, as in `digitize`, as a count of the boundaries up to each value."""
    last = add_constant(graph, f"{name}/last", [-1], "int64")
    boundaries = add_constant(
        graph, f"{name}/boundaries", node.get_attr("boundaries").floats, "float32"
    )
    values = add_node(graph, "Cast", [node.input[0]], to=FLOAT)
    values = add_node(graph, "Unsqueeze", [values, last])
    return _count_to_the_right(graph, node, name, boundaries, values, last)


def _count_to_the_right(
    graph: Any, node: Any, name: str, ordered: str, values: str, last: str
) -> Any:
    """Replaces a node by the number of bounds at or below each value; NaN is above all."""
    add = _adder(graph)
    is_within = add("Not", add("Less", values, ordered))
    counts = add("Cast", is_within, to=graph.get_dtype(node.output[0]))
    return replace_node(graph, node, name, "ReduceSum", [counts, last], keepdims=0)


HANDLERS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "BitwiseAnd": (convert_bitwise_and, []),
    "Bucketize": (convert_bucketize, []),
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
    return add_constant(graph, make_name(f"{name}/constant"), value, dtype)


def _adder(graph: Any) -> Callable[..., str]:
    """Returns `add_node` for a graph, whose inputs are single arguments."""
    return lambda operator, *inputs, **attributes: add_node(
        graph, operator, list(inputs), **attributes
    )
