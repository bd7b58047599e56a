"""Axes of operations: how they permute them, reduce them, and carry them from inputs to outputs."""

import math

import keras

from keras_deepseek.graph.ir import Node, Value
from keras_deepseek.graph.passes.contraction import as_product

# fmt: off
_ELEMENTWISE = {
    "Abs", "Absolute", "Add", "BitwiseAnd", "BitwiseOr", "Cast", "Ceil", "Celu", "Clip",
    "ConvertToTensor", "Copy", "Cos", "Divide", "DivideNoNan", "Elu", "Equal", "Erf", "Exp",
    "Expm1", "Floor", "FloorDivide", "Gelu", "Greater", "GreaterEqual", "HardShrink",
    "HardSigmoid", "HardSilu", "HardTanh", "Identity", "Isfinite", "Isinf", "Isnan", "LeakyRelu",
    "Less", "LessEqual", "Log", "Log1p", "LogSigmoid", "Logaddexp", "LogicalAnd", "LogicalNot",
    "LogicalOr", "LogicalXor", "Maximum", "Minimum", "Mod", "Multiply", "Negative", "NotEqual",
    "OnesLike", "Power", "Reciprocal", "Relu", "Relu6", "Round", "Rsqrt", "SaturateCast", "Selu",
    "Sigmoid", "Sign", "Silu", "Sin", "SoftShrink", "Softplus", "Softsign", "SparsePlus",
    "SparseSigmoid", "Sqrt", "Square", "Squareplus", "StopGradient", "Subtract", "Tanh",
    "TanhShrink", "Threshold", "TrueDivide", "Where", "ZerosLike",
}
_REDUCTIONS = {
    "All", "Amax", "Amin", "Any", "Argmax", "Argmin", "Logsumexp", "Max", "Mean", "Min", "Moments",
    "Prod", "Std", "Sum", "Var",
}
_ALONG_AXIS = {
    "Concatenate", "Cumprod", "Cumsum", "LayerNorm", "LogSoftmax", "RMSNorm", "Repeat", "Softmax",
    "Sort", "Split",
}
"""Operations along one axis or some; along the others, each position stays by itself."""
# fmt: on


def own_axes(node: Node) -> list[int]:
    """Returns the axes along which an operation works, counted from the first of its input."""
    values = node.values()
    rank = len(values[0].shape)
    axis = node.operation.axes if node.kind == "Moments" else node.operation.axis
    if axis is None:
        return list(range(rank))
    return [each % rank for each in (axis if isinstance(axis, list | tuple) else [axis])]


def operand_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis to cut of each value that a node reads, to cut an axis of its outputs.

    It is `None` for a value that stays whole. The result is `None` if the outputs can't be cut so.
    """
    rank = len(node.spec.shape)

    def aligned(value: Value) -> int | None:
        own = axis - rank + len(value.shape)
        return own if own >= 0 and value.shape[own] != 1 else None

    values = node.values()
    layer = type(node.operation)
    if layer is keras.layers.Dropout and node.operation.noise_shape is None:
        # It draws a number for each element; the rows that are cut off were independent.
        return {value: aligned(value) for value in values}
    if node.is_layer and layer is not keras.layers.Softmax:  # Whole because of its mask.
        return None
    if node.kind in _ELEMENTWISE:
        return {value: aligned(value) for value in values}
    if node.kind in _ALONG_AXIS:
        if axis in own_axes(node):
            return None
        # The scales of a norm, and the mask of a softmax, are aligned to the input.
        whole = values[1:] if node.kind in ("LayerNorm", "RMSNorm") else []
        return {value: None if value in whole else aligned(value) for value in values}
    if node.kind in (*_REDUCTIONS, "Squeeze"):
        return _kept_axis(node, axis)
    if node.kind in ("ExpandDims", "OneHot", "Stack"):
        return _axis_without_new(node, axis)
    if node.kind == "GetItem":
        return _item_axis(node, axis)
    if node.kind == "Reshape":
        return _reshaped_axis(node, axis)
    if node.kind == "DotProductAttention":
        return _query_axes(node, axis)
    return _product_axes(node, axis)


def _kept_axis(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis of the input of a reduction, or of a squeeze of given axes."""
    (value,) = node.values()
    reduced = own_axes(node)
    if node.kind == "Squeeze" and node.operation.axis is None:
        return None  # It would remove an axis that was cut to one row.
    if node.kind != "Squeeze" and node.operation.keepdims:
        return None if axis in reduced else {value: axis}
    kept = [each for each in range(len(value.shape)) if each not in reduced]
    return {value: kept[axis]}


def _axis_without_new(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis of the inputs of an operation that makes one new axis."""
    new = node.operation.axis
    if not isinstance(new, int):
        return None
    new %= len(node.spec.shape)
    return None if new == axis else dict.fromkeys(node.values(), axis - (axis > new))


def _item_axis(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis of the input of `x[key]` that the key leaves whole."""
    value, key = node.args
    key = list(key) if isinstance(key, tuple) else [key]
    if not all(each is None or each is Ellipsis or type(each) in (int, slice) for each in key):
        return None
    rest = [slice(None)] * (len(value.shape) - sum(type(each) in (int, slice) for each in key))
    place = next((place for place, each in enumerate(key) if each is Ellipsis), len(key))
    key[place : place + 1] = rest
    made: list[int | None] = []  # The axis of the input of each axis of the output.
    own = 0
    for each in key:
        if each is None or each == slice(None):
            made.append(None if each is None else own)
        elif isinstance(each, slice):
            made.append(None)
        own += each is not None
    return None if made[axis] is None else {value: made[axis]}


def _reshaped_axis(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis of a reshape's input that stays the given axis of its output."""
    before, after = node.args[0].shape, node.spec.shape
    for own, size in enumerate(before):
        if size == after[axis] and math.prod(before[:own]) == math.prod(after[:axis]):
            return {node.args[0]: own}
    return None


def _query_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axes to cut of the arguments of an attention, to cut its queries."""
    query, key, value, *others = node.values()
    if axis != 1 or node.operation.is_causal or query in (key, value):
        return None
    masks = {each: 2 if len(each.shape) == 4 and each.shape[2] != 1 else None for each in others}
    return {key: None, value: None, **masks, query: 1}


def _product_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axes to cut of the factors of a product, or of a permuted tensor."""
    product = as_product(node)
    if product is None or product.factors:
        return None
    label = product.out[axis]
    found: dict[Value, int | None] = {}
    for value, labels in zip(product.operands, product.labels, strict=True):
        own = labels.index(label) if label in labels else None
        if found.setdefault(value, own) != own:  # One tensor on both sides, to be cut on one.
            return None
    return found
