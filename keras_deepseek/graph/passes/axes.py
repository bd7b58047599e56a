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


def operation_axes(node: Node) -> list[int]:
    """Returns the axes along which an operation works, counted from the first of its input."""
    values = node.values()
    rank = len(values[0].shape)
    axis = node.operation.axes if node.kind == "Moments" else node.operation.axis
    if axis is None:
        return list(range(rank))
    return [index % rank for index in (axis if isinstance(axis, list | tuple) else [axis])]


def operand_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis along which to slice each input of a node, to slice its outputs on `axis`.

    Slicing these inputs gives the same rows as slicing the outputs. The axis is `None` for an input
    that must stay whole. The result is `None` if only the whole inputs give the rows.
    """
    rank = len(node.spec.shape)

    def aligned(value: Value) -> int | None:
        value_axis = axis - rank + len(value.shape)
        return value_axis if value_axis >= 0 and value.shape[value_axis] != 1 else None

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
        if axis in operation_axes(node):
            return None
        # The scales of a norm, and the mask of a softmax, are aligned to the input.
        whole = values[1:] if node.kind in ("LayerNorm", "RMSNorm") else []
        return {value: None if value in whole else aligned(value) for value in values}
    if node.kind in (*_REDUCTIONS, "Squeeze"):
        return _axis_before_reduction(node, axis)
    if node.kind in ("ExpandDims", "OneHot", "Stack"):
        return _axis_before_insertion(node, axis)
    if node.kind == "GetItem":
        return _axis_before_indexing(node, axis)
    if node.kind == "Reshape":
        return _axis_before_reshape(node, axis)
    if node.kind == "DotProductAttention":
        return _query_axes(node, axis)
    return _product_axes(node, axis)


def _axis_before_reduction(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the input axis that a reduction, or a squeeze of some axes, outputs as `axis`."""
    (value,) = node.values()
    reduced = operation_axes(node)
    if node.kind == "Squeeze" and node.operation.axis is None:
        return None  # It would remove an axis that was cut to one row.
    if node.kind != "Squeeze" and node.operation.keepdims:
        return None if axis in reduced else {value: axis}
    remaining = [index for index in range(len(value.shape)) if index not in reduced]
    return {value: remaining[axis]}


def _axis_before_insertion(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the input axis that an operation which inserts one new axis outputs as `axis`."""
    new = node.operation.axis
    if not isinstance(new, int):
        return None
    new %= len(node.spec.shape)
    return None if new == axis else dict.fromkeys(node.values(), axis - (axis > new))


def _axis_before_indexing(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axis of `x` that `x[key]` outputs, uncut, as `axis`."""
    value, key = node.args
    key = list(key) if isinstance(key, tuple) else [key]
    if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in key):
        return None
    full_slices = [slice(None)] * (
        len(value.shape) - sum(type(part) in (int, slice) for part in key)
    )
    ellipsis_index = next((index for index, part in enumerate(key) if part is Ellipsis), len(key))
    key[ellipsis_index : ellipsis_index + 1] = full_slices
    input_axes: list[int | None] = []  # The axis of the input of each axis of the output.
    input_axis = 0
    for part in key:
        if part is None or part == slice(None):
            input_axes.append(None if part is None else input_axis)
        elif isinstance(part, slice):
            input_axes.append(None)
        input_axis += part is not None
    return None if input_axes[axis] is None else {value: input_axes[axis]}


def _axis_before_reshape(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the input axis that a reshape neither splits nor merges and outputs as `axis`."""
    old_shape, new_shape = node.args[0].shape, node.spec.shape
    for old_axis, size in enumerate(old_shape):
        is_same_size = size == new_shape[axis]
        if is_same_size and math.prod(old_shape[:old_axis]) == math.prod(new_shape[:axis]):
            return {node.args[0]: old_axis}
    return None


def _query_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axes on which to slice query and masks of an attention. Keys stay whole."""
    query, key, value, *mask_values = node.values()
    if axis != 1 or node.operation.is_causal or query in (key, value):
        return None
    masks = {
        mask: 2 if len(mask.shape) == 4 and mask.shape[2] != 1 else None for mask in mask_values
    }
    return {key: None, value: None, **masks, query: 1}


def _product_axes(node: Node, axis: int) -> dict[Value, int | None] | None:
    """Returns the axes along which to slice the operands of a matmul, einsum or transpose."""
    product = as_product(node)
    if product is None or product.factors:
        return None
    label = product.out[axis]
    operand_axis: dict[Value, int | None] = {}
    for value, labels in zip(product.operands, product.labels, strict=True):
        index = labels.index(label) if label in labels else None
        if operand_axis.setdefault(value, index) != index:  # One tensor twice, to be cut in one.
            return None
    return operand_axis
