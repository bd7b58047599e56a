"""Elementwise operations of several tensors as ONNX nodes.

A quotient is rounded down without the error of the division, a remainder has the divisor's sign.
Integers wrap around.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek.deploy.onnx_writer.table.elementwise import elementwise, log1p, promoted
from keras_deepseek.deploy.onnx_writer.table.operand import Operand, as_operand, computed_in, where
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node
from keras_deepseek.graph.size_expressions import Size

Binary = Callable[[Operand, Operand], Operand]
"""A function of two tensors."""


def _floor_divide(x: Operand, y: Operand) -> Operand:
    """Returns the floor of x / y, of floats without the error of the quotient, as NumPy does."""
    remainder = _fmod(x, y)
    quotient = (x - remainder) / y - _is_off(remainder, y).cast(x.dtype)
    return where(y.equals(0), x / y, quotient.apply("Round"))


def _is_off(remainder: Operand, divisor: Operand) -> Operand:
    """Returns where a remainder that was rounded towards zero has not the divisor's sign."""
    return ~remainder.equals(0) & ((remainder < 0) ^ (divisor < 0))


def _mod(x: Operand, y: Operand) -> Operand:
    remainder = _fmod(x, y)
    return where(_is_off(remainder, y), remainder + y, remainder)


def _arctan2(y: Operand, x: Operand) -> Operand:
    are_infinite = y.is_infinite() & x.is_infinite()
    ratio = where(are_infinite, y.apply("Sign") * x.apply("Sign"), y / x)
    angle = where(y.equals(0) & x.equals(0), 0, ratio).apply("Atan")
    half_turn = where(y.is_negative(), y.like(-math.pi), math.pi)
    return where(x.is_negative(), angle + half_turn, angle)


def _hypot(x: Operand, y: Operand) -> Operand:
    """Returns the root of x² + y², without the overflow of the squares."""
    longest, shortest = abs(x).maximum(abs(y)), abs(x).minimum(abs(y))
    ratio = shortest / where(longest.equals(0), 1, longest)
    length = longest * (ratio * ratio + 1).apply("Sqrt")
    return where(longest.is_infinite(), longest, length)


def _log_add_exp(x: Operand, y: Operand) -> Operand:
    difference = where(x.equals(y), 0, x - y)  # Of equal infinities too.
    return x.maximum(y) + log1p((-abs(difference)).apply("Exp"))


def _ignoring_nan(kind: str) -> Binary:
    """Returns the larger or smaller number, and the number rather than NaN."""

    def choose(x: Operand, y: Operand) -> Operand:
        if not x.is_float:
            return x.apply(kind, y)
        return where(x.is_nan(), y, where(y.is_nan(), x, x.apply(kind, y)))

    return choose


def _heaviside(x: Operand, at_zero: Operand) -> Operand:
    return where(x > 0, 1, where(x.equals(0), at_zero, where(x < 0, 0, x)))


BINARY: dict[str, Binary] = {
    "Add": lambda x, y: x + y,
    "Arctan2": _arctan2,
    "Divide": lambda x, y: x / y,
    "DivideNoNan": lambda x, y: where(y.equals(0), 0, x / y),
    "Fmax": _ignoring_nan("Max"),
    "Fmin": _ignoring_nan("Min"),
    "Heaviside": _heaviside,
    "Hypot": _hypot,
    "Ldexp": lambda x, y: x * 2**y,
    "Logaddexp": _log_add_exp,
    "Logaddexp2": lambda x, y: _log_add_exp(x * math.log(2), y * math.log(2)) * (1 / math.log(2)),
    "Maximum": lambda x, y: x.maximum(y),
    "Minimum": lambda x, y: x.minimum(y),
    "Multiply": lambda x, y: x * y,
    "Subtract": lambda x, y: x - y,
    "TrueDivide": lambda x, y: x / y,
}
"""Formulas of two tensors. Their output's dtype is a float where they divide."""


@handles(
    *BINARY,
    follows={
        "Heaviside": "JAX: NaN for NaN",
        "Hypot": "JAX and PyTorch, for infinities; TensorFlow, for NaN beside infinity",
        "Ldexp": "PyTorch, for 0 times a power beyond the range",
    },
)
def _binary(writer: Writer, node: Node, x: Any, y: Any, **_: Any) -> None:
    elementwise(writer, node, [x, y], BINARY[node.kind])


COMPARISONS: dict[str, Binary] = {
    "Equal": lambda x, y: x.equals(y),
    "Greater": lambda x, y: x > y,
    "GreaterEqual": lambda x, y: x >= y,
    "Less": lambda x, y: x < y,
    "LessEqual": lambda x, y: x <= y,
    "NotEqual": lambda x, y: ~x.equals(y),
}


@handles(*COMPARISONS)
def _compare(writer: Writer, node: Node, x: Any, y: Any) -> None:
    """Writes a comparison in the dtype to which Keras promotes both."""
    elementwise(writer, node, [x, y], COMPARISONS[node.kind], promoted([x, y]))


@handles("Isclose", follows="JAX and PyTorch, for infinities")
def _is_close(
    writer: Writer, node: Node, x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8
) -> None:
    """Writes a comparison with a tolerance. Infinities are close to themselves."""

    def formula(x: Operand, y: Operand) -> Operand:
        is_near = (abs(x - y) <= atol + rtol * abs(y)) & ~y.is_infinite()
        result = x.equals(y) | is_near
        return result | (x.is_nan() & y.is_nan()) if node.operation.equal_nan else result

    dtype = str(keras.backend.result_type(promoted([x, y]), float))
    elementwise(writer, node, [x, y], formula, dtype)


LOGIC = {"LogicalAnd": "And", "LogicalNot": "Not", "LogicalOr": "Or", "LogicalXor": "Xor"}


@handles(*LOGIC)
def _logic(writer: Writer, node: Node, *arguments: Any) -> None:
    """Writes a logical operation of numbers, of which all but 0 are true."""
    kind, dtypes = LOGIC[node.kind], ["bool"] * len(arguments)
    elementwise(writer, node, arguments, lambda x, *y: x.apply(kind, *y), dtypes)


@handles("Where")
def _where(writer: Writer, node: Node, condition: Any, x: Any = None, y: Any = None) -> None:
    if x is None or y is None:
        raise NoEntryError("Where of a condition alone: the shape depends on the data")
    _choose(writer, node, [condition], [x], y)


@handles("Select")
def _select(
    writer: Writer, node: Node, conditions: Sequence[Any], choices: Sequence[Any], default: Any = 0
) -> None:
    if promoted([*choices, default]) != node.spec.dtype:
        raise NoEntryError("Select of several dtypes")
    _choose(writer, node, conditions, choices, default)


def _choose(
    writer: Writer, node: Node, conditions: Sequence[Any], choices: Sequence[Any], default: Any
) -> None:
    """Puts a choice by the first condition that is true."""
    dtype, count = computed_in(node.spec.dtype), len(conditions)

    def formula(*operands: Operand) -> Operand:
        result = operands[-1]
        for index in reversed(range(count)):
            result = where(operands[index], operands[count + index], result)
        return result

    dtypes = ["bool"] * count + [dtype] * (count + 1)
    elementwise(writer, node, [*conditions, *choices, default], formula, dtypes)


# Integers.


def _quotient_and_remainder(x: Operand, y: Operand) -> tuple[Operand, Operand]:
    """Returns x / y rounded towards zero, and what remains; x / 0 is 0, and nothing remains.

    A processor stops the program at x / 0 and at the lowest number divided by -1.
    """
    x = where(y.equals(0), 0, x)
    is_opposite = y.equals(-1)
    quotient = where(is_opposite, -x, x) / where(y.equals(0) | is_opposite, 1, y)
    return quotient, x - quotient * y


def _floor_divide_integers(x: Operand, y: Operand) -> Operand:
    quotient, remainder = _quotient_and_remainder(x, y)
    return quotient - _is_off(remainder, y).cast(x.dtype)


def _mod_integers(x: Operand, y: Operand) -> Operand:
    remainder = _quotient_and_remainder(x, y)[1]
    return where(_is_off(remainder, y), remainder + y, remainder)


def _floor_divide_by_constant(x: Operand, y: Operand) -> Operand:
    quotient = x / y
    return quotient - _is_off(x - quotient * y, y).cast(x.dtype)


def _fmod(x: Operand, y: Operand) -> Operand:
    return x.apply("Mod", y, fmod=1)


DIVISIONS: dict[str, tuple[Binary, Binary, Binary]] = {
    "FloorDivide": (_floor_divide, _floor_divide_integers, _floor_divide_by_constant),
    "Fmod": (_fmod, lambda x, y: _quotient_and_remainder(x, y)[1], _fmod),
    "Mod": (_mod, _mod_integers, lambda x, y: x.apply("Mod", y)),  # Of the divisor's sign.
}
"""The formulas of floats, of integers, and of integers by a constant that is neither 0 nor -1."""


@handles(
    *DIVISIONS,
    follows={
        "FloorDivide": "JAX and PyTorch, for floats; NumPy, for integers divided by 0: 0",
        "Fmod": "JAX and PyTorch, for integers; NumPy for those divided by 0: 0",
        "Mod": "NumPy, for integers divided by 0: 0",
    },
)
def _divide_and_round(writer: Writer, node: Node, x: Any, y: Any) -> None:
    """Writes a quotient without fraction, or the remainder."""
    divisors, (of_floats, of_integers, by_constant) = writer.array(y), DIVISIONS[node.kind]
    if node.spec.dtype == "bool":
        raise NoEntryError(f"{node.kind} of bool")
    if divisors is not None and not isinstance(y, Size) and not np.isin(divisors, (0, -1)).any():
        of_integers = by_constant
    is_float = "float" in node.spec.dtype
    elementwise(writer, node, [x, y], of_floats if is_float else of_integers)


@handles("Power")
def _integer_or_float_power(writer: Writer, node: Node, x: Any, y: Any) -> None:
    """Writes a power. One of integers is a chain of products: `Pow` would compute it as floats."""
    if "float" in node.spec.dtype:
        elementwise(writer, node, [x, y], lambda x, y: x**y)
        return
    exponents = writer.array(y)
    if exponents is None or isinstance(y, Size) or np.unique(exponents).size != 1:
        raise NoEntryError("Power of integers by a tensor")
    exponent = int(exponents.flat[0])
    if exponent < 0 or node.spec.dtype == "bool":
        raise NoEntryError(f"Power of {node.spec.dtype} by {exponent}")
    spread = np.zeros(np.shape(exponents), "int32")  # Its shape may be the larger one.
    elementwise(writer, node, [x, spread], lambda x, zero: _power(x, exponent) + zero)


def _power(x: Operand, exponent: int) -> Operand:
    """Returns x to the power of a number, from its squares."""
    result, square = None, x
    while exponent:
        if exponent % 2:
            result = square if result is None else result * square
        exponent //= 2
        square = square * square if exponent else square
    return x * 0 + 1 if result is None else result


BITS: dict[str, tuple[str, str]] = {
    "BitwiseAnd": ("BitwiseAnd", "And"),
    "BitwiseOr": ("BitwiseOr", "Or"),
    "BitwiseXor": ("BitwiseXor", "Xor"),
    "BitwiseInvert": ("BitwiseNot", "Not"),
    "BitwiseNot": ("BitwiseNot", "Not"),
}
"""The operators for integers and for bool."""


@handles(*BITS)
def _bitwise(writer: Writer, node: Node, *arguments: Any) -> None:
    """Writes an operation on the bits of integers."""
    kind, dtypes = BITS[node.kind][node.spec.dtype == "bool"], [node.spec.dtype] * len(arguments)
    elementwise(writer, node, arguments, lambda x, *y: x.apply(kind, *y), dtypes)


def _shift_left(x: Operand, count: Operand) -> Operand:
    shifted = x.cast("uint64").apply("BitShift", count.cast("uint64"), direction="LEFT")
    return where(count < 64, shifted.cast("int64"), 0)  # noqa: PLR2004


def _shift_right(x: Operand, count: Operand) -> Operand:
    """Returns the floor of x / 2^count. `BitShift` has unsigned integers only."""
    sign = -(x < 0).cast("int64")
    positive = x.apply("BitwiseXor", sign).cast("uint64")
    shifted = positive.apply("BitShift", count.minimum(63).cast("uint64"), direction="RIGHT")
    return shifted.cast("int64").apply("BitwiseXor", sign)


SHIFTS: dict[str, Binary] = {
    "BitwiseLeftShift": _shift_left,
    "BitwiseRightShift": _shift_right,
    "LeftShift": _shift_left,
    "RightShift": _shift_right,
}


@handles(*SHIFTS, follows="JAX and PyTorch, by more bits than there are, or fewer than 0")
def _shift(writer: Writer, node: Node, x: Any, count: Any) -> None:
    """Writes a shift of the bits of integers of any sign."""
    if node.spec.dtype in ("bool", "uint64"):
        raise NoEntryError(f"{node.kind} of {node.spec.dtype}")
    elementwise(writer, node, [x, count], SHIFTS[node.kind], "int64")


@handles("IsIn")
def _is_in(writer: Writer, node: Node, x: Any, elements: Any) -> str:
    """Writes whether each number is among those of another tensor."""
    elements = elements if hasattr(elements, "dtype") else np.asarray(elements)
    dtype = computed_in(promoted([x, elements]))
    column = as_operand(writer, x, dtype).unsqueeze(-1)
    matches = column.equals(as_operand(writer, elements, dtype).reshape(-1)).cast("int32")
    is_match = matches.reduce("ReduceSum", [-1]).cast("bool")
    return (~is_match if node.operation.invert else is_match).name
