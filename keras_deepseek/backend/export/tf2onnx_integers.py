"""Handlers for TensorFlow operators on integers that tf2onnx writes in floats, or not at all.

A float32 is exact for integers up to 2**24. See `tf2onnx_operators` for the form of a handler.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# The numbers of dtypes in `onnx.TensorProto`, defined here to avoid importing `onnx`.
FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = 1, 2, 3, 4, 5, 6, 7
BOOL, FLOAT16, DOUBLE, UINT32, UINT64 = 9, 10, 11, 12, 13
SHORT_INTEGERS = (INT8, UINT8, INT16, UINT16, INT32, UINT32)
"""The integers of 32 bits or fewer."""


def convert_top_k(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `TopK` of integers and float64 exactly: tf2onnx casts them to float32."""
    from tf2onnx.onnx_opset.tensor import TopKV2

    dtype = graph.get_dtype(node.input[0])
    if dtype not in _WIDER:
        node.type = "TopK"
        return TopKV2.version_13(graph, node)
    x = _cast(graph, node.input[0], _WIDER[dtype])
    vector_shape = add_constant(graph, f"{name}/one", [1], "int64")
    count = add_node(graph, "Reshape", [_cast(graph, node.input[1], INT64), vector_shape])
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    top_k = graph.make_node(
        "TopK",
        [x, count],
        attr={"axis": -1},
        output_count=2,
        shapes=shapes,
        dtypes=[_WIDER[dtype], INT64],
    )
    for wide_output, output, shape, to in zip(top_k.output, outputs, shapes, dtypes, strict=True):
        graph.make_node(
            "Cast", [wide_output], {"to": to}, outputs=[output], shapes=[shape], dtypes=[to]
        )
    return top_k


def convert_comparison(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Less` and `Greater` of integers exactly: tf2onnx casts them to float32."""
    from tf2onnx.onnx_opset.logical import GreaterLess

    dtypes = {_WIDER.get(graph.get_dtype(value)) for value in node.input}
    if None in dtypes or (DOUBLE in dtypes and len(dtypes) > 1):
        return GreaterLess.version_7(graph, node)
    # tf2onnx may record int32 for what it has made int64, such as the count of a loop.
    to = DOUBLE if DOUBLE in dtypes else INT64
    inputs = [add_node(graph, "Cast", [value], to=to) for value in node.input]
    return replace_node(graph, node, name, node.type, inputs)


def convert_arg_extreme(graph: Any, node: Any, _name: str, _: list[Any]) -> Any:
    """Casts the input of `ArgMax` if onnxruntime lacks its dtype, such as boolean."""
    from tf2onnx.onnx_opset.reduction import ArgMax

    dtype = graph.get_dtype(node.input[0])
    if dtype in _UNORDERED:
        wider = _cast(graph, node.input[0], _WIDER[dtype])
        graph.replace_input(node, node.input[0], wider, 0)
    return ArgMax.version_12(graph, node)


def convert_floor_div(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `FloorDiv` as `Div`, minus one where `Div` has rounded up: tf2onnx writes `Div` alone.

    No step exceeds the dtype, except for its lowest number divided by -1.
    """
    from tf2onnx.onnx_opset.math import FloorDiv

    if graph.get_dtype(node.input[0]) not in _SIGNED:
        return FloorDiv.version_6(graph, node)
    dtype = graph.get_dtype(node.input[0])
    wide = INT64 if dtype == INT64 else INT32
    x, y = (_cast(graph, operand, wide) for operand in node.input)
    zero = _cast(graph, add_constant(graph, f"{name}/zero", 0, "int32"), wide)
    # It has the sign of `y`. If it is not zero and the signs of `x` and `y` differ, `Div` rounded
    # up.
    remainder = add_node(graph, "Mod", [x, y])
    has_remainder = add_node(graph, "Not", [add_node(graph, "Equal", [remainder, zero])])
    signs = [add_node(graph, "Less", [operand, zero]) for operand in (x, y)]
    is_up = add_node(graph, "And", [has_remainder, add_node(graph, "Xor", signs)])
    decrement = add_node(graph, "Cast", [is_up], to=wide)
    whole = add_node(graph, "Sub", [add_node(graph, "Div", [x, y]), decrement])
    return replace_node(graph, node, name, "Cast", [whole], to=dtype)


def convert_floor_mod(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `FloorMod`, whose result has the sign of `y`.

    Floats take `Mod`, plus `y` where the signs differ. tf2onnx's `x - floor(x / y) y` loses all
    digits where `x` is large beside `y`, and gives integers the sign of `x`.
    """
    from tf2onnx.onnx_opset.math import FloorMod

    dtype = graph.get_dtype(node.input[0])
    if dtype in _SIGNED:
        return replace_node(graph, node, name, "Mod", list(node.input))
    if dtype not in _FLOATS:
        return FloorMod.version_7(graph, node)
    x, y = node.input
    zero = add_constant(graph, f"{name}/zero", 0, _NUMPY_FLOATS[dtype])
    remainder = add_node(graph, "Mod", [x, y], fmod=1)
    signs = [add_node(graph, "Less", [operand, zero]) for operand in (remainder, y)]
    has_remainder = add_node(graph, "Not", [add_node(graph, "Equal", [remainder, zero])])
    is_beyond = add_node(graph, "And", [has_remainder, add_node(graph, "Xor", signs)])
    return replace_node(
        graph, node, name, "Where", [is_beyond, add_node(graph, "Add", [remainder, y]), remainder]
    )


def convert_shift(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes a shift of signed integers as `BitShift` of their 64 bits: ONNX shifts no signed ones.

    `BitShift` fills with zeros. A negative `x` needs ones when it is shifted to the right: `-1 - x`
    is shifted, whose bits are the opposite, and the result is subtracted from -1.
    """
    from tf2onnx.onnx_opset.math import BitShift

    if graph.get_dtype(node.input[0]) not in _SIGNED:
        return BitShift.version_11(graph, node)
    x, counts = (_cast(graph, value, INT64) for value in node.input)
    to = node.output_dtypes[0]

    def shift(value: str, direction: str) -> str:
        bits = [_cast(graph, operand, UINT64) for operand in (value, counts)]
        return _cast(graph, add_node(graph, "BitShift", bits, direction=direction), INT64)

    if node.type == "LeftShift":
        return replace_node(graph, node, name, "Cast", [shift(x, "LEFT")], to=to)
    ones = add_constant(graph, f"{name}/ones", -1, "int64")
    zero = add_constant(graph, f"{name}/zero", 0, "int64")
    is_below = add_node(graph, "Less", [x, zero])
    above = add_node(graph, "Where", [is_below, add_node(graph, "Sub", [ones, x]), x])
    moved = shift(above, "RIGHT")
    signed = add_node(graph, "Where", [is_below, add_node(graph, "Sub", [ones, moved]), moved])
    return replace_node(graph, node, name, "Cast", [signed], to=to)


def convert_segment_extreme(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Converts the maximum or minimum of each segment to `ScatterND`.

    tf2onnx by itself does so for floats only. As in TensorFlow, an empty segment gets the least
    number of the dtype for a maximum, and the largest for a minimum. Numbers with a negative
    segment id go into one more segment, which is cut off.
    """
    from tf2onnx.onnx_opset.reduction import SegmentSum
    from tf2onnx.utils import map_onnx_to_numpy_type

    numbers, segments, num_segments = node.input
    dtype = graph.get_dtype(numbers)
    numpy_dtype = map_onnx_to_numpy_type(dtype)
    if graph.get_rank(segments) != 1 or graph.opset < _OPSET_OF_SCATTERED_EXTREMES:
        return SegmentSum.version_13(graph, node)
    limits = (np.finfo if dtype in _FLOATS else np.iinfo)(numpy_dtype)
    is_max = node.type.endswith("Max")
    reduction, value_if_empty = ("max", limits.min) if is_max else ("min", limits.max)

    def constant(what: str, value: Any, of: Any = "int64") -> str:
        return add_constant(graph, f"{name}/{what}", value, of)

    unit = constant("one", [1])
    count = add_node(graph, "Reshape", [_cast(graph, num_segments, INT64), unit])
    segment_ids = _cast(graph, segments, INT64)
    is_negative = add_node(graph, "Less", [segment_ids, constant("zero", 0)])
    segment_ids = add_node(graph, "Where", [is_negative, count, segment_ids])
    row_indices = add_node(graph, "Unsqueeze", [segment_ids, unit])
    sizes = add_node(graph, "Shape", [numbers], start=1)
    rows = add_node(graph, "Add", [count, unit])
    shape = add_node(graph, "Concat", [rows, sizes], axis=0)
    empty = add_node(graph, "Expand", [constant("least", value_if_empty, numpy_dtype), shape])
    filled = add_node(graph, "ScatterND", [empty, row_indices, numbers], reduction=reduction)
    first = constant("first", [0])
    return replace_node(graph, node, name, "Slice", [filled, first, count, first])


def convert_reduction(graph: Any, node: Any, _name: str, _: list[Any]) -> Any:
    """Casts the input of a reduction if onnxruntime can't reduce its dtype.

    onnxruntime cuts off a sum of int32 that overflows, and TensorFlow wraps around.
    """
    from tf2onnx.onnx_opset.math import CumSum
    from tf2onnx.onnx_opset.reduction import ReduceOpBase

    dtype = graph.get_dtype(node.input[0])
    is_sum = node.type in ("Sum", "Cumsum")
    wide = INT64 if is_sum and dtype in SHORT_INTEGERS else _WIDER.get(dtype, dtype)
    node.type = _REDUCTIONS[node.type]
    if wide != dtype:
        graph.replace_input(node, node.input[0], _cast(graph, node.input[0], wide), 0)
        _cast_back(graph, node, wide)
    if node.type == "CumSum":
        return CumSum.version_11(graph, node)
    if graph.opset >= _OPSET_OF_REDUCED_AXES:
        return ReduceOpBase.version_18(graph, node)
    return ReduceOpBase.version_13(graph, node)


def convert_relu(graph: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Writes `Relu` of integers as `Max` with zero: onnxruntime has `Relu` for few of them."""
    from tf2onnx.onnx_opset.math import DirectOp

    dtype = graph.get_dtype(node.input[0])
    if dtype not in _WIDER or dtype == DOUBLE:
        return DirectOp.version_6(graph, node)
    wide = _cast(graph, node.input[0], INT64)
    zero = add_constant(graph, f"{name}/zero", 0, "int64")
    above = add_node(graph, "Max", [wide, zero])
    return replace_node(graph, node, name, "Cast", [above], to=dtype)


def _cast(graph: Any, value: str, to: int) -> str:
    return value if graph.get_dtype(value) == to else add_node(graph, "Cast", [value], to=to)


def _cast_back(graph: Any, node: Any, dtype: int) -> None:
    """Changes the dtype of a node's output, and adds a cast back for the nodes that read it."""
    (output,) = node.output
    had = graph.get_dtype(output)
    graph.set_dtype(output, dtype)
    cast = graph.insert_new_node_on_output("Cast", output, name=f"{node.name}/cast_back", to=had)
    graph.set_dtype(cast.output[0], had)
    graph.copy_shape(output, cast.output[0])


_OPSET_OF_SCATTERED_EXTREMES = _OPSET_OF_REDUCED_AXES = 18

_WIDER = {
    BOOL: INT32,
    UINT8: INT32,
    INT8: INT32,
    UINT16: INT32,
    INT16: INT32,
    INT32: INT32,
    UINT32: INT64,
    INT64: INT64,
    DOUBLE: DOUBLE,
}
"""A dtype for each dtype that holds all of its values and that onnxruntime compares."""

_UNORDERED = (BOOL, UINT16, INT16, UINT32)
_SIGNED = (INT8, INT16, INT32, INT64)
_FLOATS = (FLOAT, FLOAT16, DOUBLE)
_NUMPY_FLOATS = {FLOAT: "float32", FLOAT16: "float16", DOUBLE: "float64"}

_REDUCTIONS = {
    "Cumsum": "CumSum",
    "Max": "ReduceMax",
    "Min": "ReduceMin",
    "Prod": "ReduceProd",
    "Sum": "ReduceSum",
}

INTEGER_HANDLERS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "ArgMax": (convert_arg_extreme, []),
    "ArgMin": (convert_arg_extreme, []),
    "FloorDiv": (convert_floor_div, []),
    "FloorMod": (convert_floor_mod, []),
    "Greater": (convert_comparison, []),
    "LeftShift": (convert_shift, []),
    "Less": (convert_comparison, []),
    "Relu": (convert_relu, []),
    "RightShift": (convert_shift, []),
    "TopKV2": (convert_top_k, []),
    "UnsortedSegmentMax": (convert_segment_extreme, []),
    "UnsortedSegmentMin": (convert_segment_extreme, []),
    **dict.fromkeys(_REDUCTIONS, (convert_reduction, [])),
}
"""Handlers by operator, for the argument `custom_op_handlers` of tf2onnx."""


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
