"""Elementwise operations of one tensor as ONNX nodes, and what all elementwise operations share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.table.operand import (
    Operand,
    as_operand,
    computed_in,
    limits,
    shape_of,
    where,
)
from keras_deepseek.deploy.onnx_writer.writer import (
    FIRST,
    LAST,
    OPERATOR_OPSETS,
    NoEntryError,
    Writer,
    handles,
    numpy_dtype,
    to_first,
)
from keras_deepseek.graph.ir import Node, Value
from keras_deepseek.graph.size_expressions import Size

Formula = Callable[[Operand, Any], Operand]
"""A function of a tensor, and of the Keras operation, which holds its options."""

SPATIAL_RANK = 3
"""The least rank of a tensor that has a batch, spatial axes and channels."""

# What all elementwise operations share.


def promoted(arguments: Sequence[Any]) -> str:
    """Returns the dtype to which Keras converts tensors and numbers that it combines."""
    kinds = [
        keras.backend.standardize_dtype(argument.dtype)
        if hasattr(argument, "dtype")
        else int
        if isinstance(argument, Size)
        else type(argument)
        for argument in arguments
    ]
    return str(keras.backend.result_type(*kinds))


def elementwise(
    writer: Writer,
    node: Node,
    arguments: Sequence[Any],
    formula: Callable[..., Operand],
    dtypes: Sequence[str] | str | None = None,
) -> None:
    """Puts `formula(*operands)`, cast to the output's dtype, in the layout of the operands.

    The operands have dtypes of their own, or the one that is named, by default the output's, or
    rather a wider one if ONNX Runtime can't compute in it.
    """
    if dtypes is None or isinstance(dtypes, str):
        dtypes = [computed_in(dtypes or node.spec.dtype)] * len(arguments)
    rank = len(node.spec.shape)
    is_first = _is_channels_first(writer, arguments, rank)
    operands = []
    for argument, dtype in zip(arguments, dtypes, strict=True):
        if is_first:
            operands.append(_channels_first(writer, argument, dtype, rank))
        else:
            operands.append(as_operand(writer, argument, dtype))
    result = formula(*operands).cast(node.spec.dtype)
    writer.put(Value(node), result.name, FIRST if is_first else LAST)


def _is_channels_first(writer: Writer, arguments: Sequence[Any], rank: int) -> bool:
    """Returns whether a tensor has its channels first only, and all others can follow it."""
    values = [argument for argument in arguments if isinstance(argument, Value)]
    return (
        rank >= SPATIAL_RANK
        and all(len(value.shape) in (0, 1, rank) for value in values)
        and any(len(value.shape) == rank and LAST not in writer.layouts(value) for value in values)
    )


def _channels_first(writer: Writer, argument: Any, dtype: str, rank: int) -> Operand:
    """Returns a tensor that broadcasts against those with channels first."""
    shape = shape_of(argument)
    array = writer.array(argument) if shape else None
    if array is not None:
        spread = array.astype(numpy_dtype(dtype)).reshape((1,) * (rank - array.ndim) + array.shape)
        return Operand(writer, writer.constant(spread.transpose(to_first(rank))), dtype)
    if len(shape) > 1:
        return Operand(writer, writer.name(argument, FIRST), argument.dtype).cast(dtype)
    operand = as_operand(writer, argument, dtype)
    return operand.reshape(-1, *[1] * (rank - 2)) if shape else operand


# Casts.


@handles("Array", "Conjugate", "ConvertToTensor", "Copy", "Real", "StopGradient")
@handles("Cast", follows="PyTorch and TensorFlow, for NaN and floats beyond the range of integers")
def _identity(writer: Writer, node: Node, x: Any, *_: Any, **__: Any) -> None:
    """Writes a cast, or nothing."""
    elementwise(writer, node, [x], lambda x: x, [node.spec.dtype])


def _in_float64(formula: Callable[[Operand], Operand]) -> Formula:
    """Computes a function in float64, so that `log2(8)` is 3, and `floor` of it as well."""
    return lambda x, _: formula(x.cast("float64")).cast(x.dtype)


def log1p(x: Operand) -> Operand:
    """Returns `log(u) x / (u - 1)` with `u = 1 + x`: exact for small x, where 1 + x is not."""
    u = x + 1
    difference = u - 1
    is_small = difference.equals(0)
    exact = u.apply("Log") * (x / where(is_small, 1, difference))
    return where(is_small, x, where(u.equals(x), u.apply("Log"), exact))


def _expm1(x: Operand) -> Operand:
    """Returns `2 t / (1 - t)` with `t = tanh(x / 2)`, which is exact for small x."""
    t = (x * 0.5).apply("Tanh")
    return where(abs(x) < 0.5, 2 * t / (1 - t), x.apply("Exp") - 1)  # noqa: PLR2004


def _cube_root(x: Operand) -> Operand:
    return x.apply("Sign") * abs(x) ** (1 / 3)


def _sinc(x: Operand) -> Operand:
    angle = x * math.pi
    return where(x.equals(0), 1, angle.apply("Sin") / angle)


def _sparse_plus(x: Operand) -> Operand:
    return where(x <= -1, 0, where(x >= 1, x, (x + 1) * (x + 1) / 4))


def _gelu(x: Operand, operation: Any) -> Operand:
    if x.writer.opset >= OPERATOR_OPSETS["Gelu"]:
        return x.apply("Gelu", approximate="tanh" if operation.approximate else "none")
    if operation.approximate:  # In the order of nodes that ONNX Runtime fuses.
        cube = x.apply("Pow", Operand(x.writer, x.writer.tensor(3, "float32"), "float32"))
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * cube)
        return (0.5 * x) * (1 + inner.apply("Tanh"))
    return (x * ((x / math.sqrt(2)).apply("Erf") + 1)) * 0.5


OPERATORS = {
    "Arccos": "Acos", "Arccosh": "Acosh", "Arcsin": "Asin", "Arcsinh": "Asinh", "Arctan": "Atan",
    "Arctanh": "Atanh", "Ceil": "Ceil", "Cos": "Cos", "Cosh": "Cosh", "Erf": "Erf", "Exp": "Exp",
    "Floor": "Floor", "HardSilu": "HardSwish", "Log": "Log", "Reciprocal": "Reciprocal",
    "Selu": "Selu", "Sigmoid": "Sigmoid", "Sin": "Sin", "Sinh": "Sinh", "Softplus": "Softplus",
    "Softsign": "Softsign", "Sqrt": "Sqrt", "Tan": "Tan", "Tanh": "Tanh",
}  # fmt: skip
"""Functions of floats that are operators of ONNX."""


def _operator(kind: str) -> Formula:
    return lambda x, _: x.apply(kind)


FLOAT_FORMULAS: dict[str, Formula] = {
    **{kind: _operator(operator) for kind, operator in OPERATORS.items()},
    "Cbrt": _in_float64(_cube_root),
    "Celu": lambda x, op: x.apply("Celu", alpha=float(op.alpha)),
    "Deg2rad": lambda x, _: x * (math.pi / 180),
    "Elu": lambda x, op: x.apply("Elu", alpha=float(op.alpha)),
    "Erfc": lambda x, _: 1 - x.apply("Erf"),
    "Exp2": lambda x, _: 2**x,
    "Expm1": lambda x, _: _expm1(x),
    "Fabs": lambda x, _: abs(x),
    "Gelu": _gelu,
    "HardShrink": lambda x, op: x.apply("Shrink", lambd=float(op.threshold), bias=0.0),
    "HardSigmoid": lambda x, _: x.apply("HardSigmoid", alpha=1 / 6, beta=0.5),
    "LeakyRelu": lambda x, op: x.apply("LeakyRelu", alpha=float(op.negative_slope)),
    "Log10": _in_float64(lambda x: x.apply("Log") / math.log(10)),
    "Log1p": lambda x, _: log1p(x),
    "Log2": _in_float64(lambda x: x.apply("Log") / math.log(2)),
    "LogSigmoid": lambda x, _: -(-x).apply("Softplus"),
    "Rad2deg": lambda x, _: x * (180 / math.pi),
    "Rsqrt": lambda x, _: x.apply("Sqrt").apply("Reciprocal"),
    "Silu": lambda x, _: x * x.apply("Sigmoid"),
    "Sinc": lambda x, _: _sinc(x),
    "SoftShrink": lambda x, op: x.apply(
        "Shrink", lambd=float(op.threshold), bias=float(op.threshold)
    ),
    "SparsePlus": lambda x, _: _sparse_plus(x),
    "SparseSigmoid": lambda x, _: where(x <= -1, 0, where(x >= 1, 1, (x + 1) * 0.5)),
    "Squareplus": lambda x, op: 0.5 * (x + (x * x + float(op.b)).apply("Sqrt")),
    "TanhShrink": lambda x, _: x - x.apply("Tanh"),
    "Threshold": lambda x, op: where(x > op.threshold, x, op.default_value),
}
"""Functions of floats."""


def _relu(x: Operand) -> Operand:
    return x.apply("Relu") if x.is_float else x.maximum(0)


def _layer_relu(x: Operand, operation: Any) -> Operand:
    """Returns `activations.relu`, whose slope, maximum and threshold may each be missing."""
    slope, threshold = float(operation.negative_slope), float(operation.threshold)
    if not x.is_float and (slope or threshold or operation.max_value is not None):
        raise NoEntryError("ReLU of integers with a slope, a threshold or a maximum")
    if slope and not threshold and operation.max_value is None:
        return x.apply("LeakyRelu", alpha=slope)
    result = where(x > threshold, x, 0) if threshold else x
    if operation.max_value is not None:
        result = result.apply("Clip", 0, float(operation.max_value))
    elif not threshold:
        result = _relu(x)
    return result - slope * _relu(threshold - x) if slope else result


def _round(x: Operand, operation: Any) -> Operand:
    decimals: int = operation.decimals
    if not x.is_float and decimals < 0:
        raise NoEntryError(f"Round of integers to {decimals} decimals")
    if not x.is_float or not decimals:
        return x.apply("Round") if x.is_float else x
    scale = 10.0 ** abs(decimals)
    return (
        (x * scale).apply("Round") / scale if decimals > 0 else (x / scale).apply("Round") * scale
    )


def _clip(x: Operand, operation: Any) -> Operand:
    for bound in (operation.x_min, operation.x_max):
        if keras.ops.is_tensor(bound) or np.ndim(bound):
            raise NoEntryError("Clip between tensors")
        if bound is not None and not x.is_float and not float(bound).is_integer():
            raise NoEntryError(f"Clip of integers at {bound}")
    if operation.x_min is not None:
        x = x.maximum(operation.x_min)
    return x if operation.x_max is None else x.minimum(operation.x_max)


def _nan_to_num(x: Operand, operation: Any) -> Operand:
    if not x.is_float:
        return x
    least, most = limits(x.dtype)
    most = most if operation.posinf is None else operation.posinf
    least = least if operation.neginf is None else operation.neginf
    finite = where(x.is_infinite(), where(x > 0, x.like(most), x.like(least)), x)
    return where(x.is_nan(), operation.nan, finite)


NUMBER_FORMULAS: dict[str, Formula] = {
    "Absolute": lambda x, _: abs(x),
    "Clip": _clip,
    "HardTanh": lambda x, _: x.apply("Clip", -1, 1),
    "NanToNum": _nan_to_num,
    "Negative": lambda x, _: -x,
    "ReLU": _layer_relu,
    "Relu": lambda x, _: _relu(x),
    "Relu6": lambda x, _: x.apply("Clip", 0, 6),
    "Round": _round,
    "Sign": lambda x, _: x.apply("Sign"),
    "Square": lambda x, _: x * x,
    "Trunc": lambda x, _: where(x < 0, x.apply("Ceil"), x.apply("Floor")) if x.is_float else x,
}
"""Functions of floats or integers."""


@handles(
    *FLOAT_FORMULAS,
    *NUMBER_FORMULAS,
    follows={
        "Cbrt": "JAX and TensorFlow, for negative integers",
        "Clip": "JAX and PyTorch, for a minimum above the maximum",
        "Gelu": "JAX and TensorFlow: infinity for infinity",
        "HardShrink": "JAX and TensorFlow: 0 for NaN",
        "Round": "JAX and TensorFlow: integers stay",
        "Sign": "JAX and TensorFlow: NaN for NaN",
        "SoftShrink": "JAX and TensorFlow: 0 for NaN",
        "Threshold": "JAX and TensorFlow: the default value for NaN",
    },
)
def _function(writer: Writer, node: Node, x: Value) -> None:
    formula = NUMBER_FORMULAS.get(node.kind) or FLOAT_FORMULAS[node.kind]
    if node.kind in FLOAT_FORMULAS and "float" not in node.spec.dtype:
        raise NoEntryError(f"{node.kind} of {node.spec.dtype}")
    elementwise(writer, node, [x], lambda x: formula(x, node.operation))


SPECIAL: dict[str, Callable[[Operand], Operand]] = {
    "Isfinite": lambda x: ~(x.is_nan() | x.is_infinite()),
    "Isinf": lambda x: x.is_infinite(),
    "Isnan": lambda x: x.is_nan(),
    "Isneginf": lambda x: x.is_infinite(detect_positive=0),
    "Isposinf": lambda x: x.is_infinite(detect_negative=0),
    "Signbit": lambda x: x.is_negative(),
}
"""Tests of floats. Integers are tested as floats: none is special, and their signs stay."""


@handles(*SPECIAL)
def _is_special(writer: Writer, node: Node, x: Value) -> None:
    dtype = x.dtype if "float" in x.dtype else "float32"
    elementwise(writer, node, [x], SPECIAL[node.kind], dtype)


@handles("SaturateCast", follows="no backend, for floats beyond the range: they are clipped")
def _saturate_cast(writer: Writer, node: Node, x: Value) -> None:
    """Writes a cast that clips to what the dtype holds, in numbers of the tensor's dtype."""
    lowest, highest = limits(node.spec.dtype)
    least, most = max(lowest, limits(x.dtype)[0]), min(highest, limits(x.dtype)[1])
    if "float" in x.dtype:  # Which may round a bound to one that the dtype doesn't hold.
        low, high, zero = (
            np.array(bound).astype(numpy_dtype(x.dtype)) for bound in (least, most, 0)
        )
        least = float(np.nextafter(low, zero) if float(low) < lowest else low)
        most = float(np.nextafter(high, zero) if float(high) > highest else high)
    elementwise(writer, node, [x], lambda x: x.maximum(least).minimum(most), x.dtype)


@handles("Glu")
def _glu(writer: Writer, node: Node, x: Value) -> str:
    """Writes a gated linear unit: one half times the sigmoid of the other."""
    axis = node.operation.axis
    linear, gate = writer.add_several("Split", writer.name(x), axis=axis, outputs=2, num_outputs=2)
    return writer.add("Mul", linear, writer.add("Sigmoid", gate))
