"""Arithmetic on the tensors of an ONNX file, written as Python expressions."""

from collections.abc import Callable, Sequence
from typing import Any, Union

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, numpy_dtype
from keras_deepseek.graph.ir import Value
from keras_deepseek.graph.size_expressions import Size

Number = Union["Operand", int, float, Array]

COMPUTED_IN = {
    "bool": "int32", "int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32",
    "uint32": "int64",
}  # fmt: skip
"""The dtypes for whose arithmetic ONNX Runtime has no kernels, and those that hold all of their
numbers. A cast back wraps around, as sums and products in the narrow dtype do."""


def computed_in(dtype: str) -> str:
    """Returns the dtype in which to compute, if the result is cast to `dtype`."""
    if dtype == "uint64":
        raise NoEntryError("arithmetic in uint64")
    return COMPUTED_IN.get(dtype, dtype)


def shape_of(argument: Any) -> tuple[int, ...]:
    """Returns the shape of a value, an array, a list or a number."""
    return argument.shape if isinstance(argument, Value) else np.shape(argument)


def limits(dtype: str) -> tuple[float, float]:
    """Returns the lowest and the highest finite number of a dtype."""
    if dtype == "bool":
        return 0, 1
    if "int" in dtype:
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    highest = 3.3895313892515355e38 if dtype == "bfloat16" else float(np.finfo(dtype).max)
    return -highest, highest


def _operator(kind: str, dtype: str | None = None) -> Callable[["Operand", Number], "Operand"]:
    return lambda self, other: self.apply(kind, other, dtype=dtype)


def _reflected(kind: str) -> Callable[["Operand", Number], "Operand"]:
    return lambda self, other: self.like(other).apply(kind, self)


class Operand:
    """A tensor of the file in an expression: `2 * x + 1` adds the nodes `Mul` and `Add`.

    Numbers become constants of the other operand's dtype.
    """

    def __init__(self, writer: Writer, name: str, dtype: str) -> None:
        self.writer, self.name, self.dtype = writer, name, dtype

    @property
    def is_float(self) -> bool:
        """True for a dtype of floats."""
        return "float" in self.dtype

    def like(self, number: Number) -> "Operand":
        """Returns a number, an array or a size in this dtype, and an operand as it is."""
        if isinstance(number, Operand):
            return number
        if isinstance(number, Size):
            return Operand(self.writer, self.writer.tensor(number, self.dtype), self.dtype)
        array = np.array(number).astype(numpy_dtype(self.dtype))
        return Operand(self.writer, self.writer.constant(array), self.dtype)

    def apply(
        self, kind: str, *operands: Number | str, dtype: str | None = None, **attributes: Any
    ) -> "Operand":
        """Returns the output of a node, which has this dtype or the one that is named.

        An operand may be the name of a tensor of another dtype, such as its axes.
        """
        names = [item if isinstance(item, str) else self.like(item).name for item in operands]
        name = self.writer.add(kind, self.name, *names, **attributes)
        return Operand(self.writer, name, dtype or self.dtype)

    def cast(self, dtype: str) -> "Operand":
        """Returns the operand in another dtype."""
        return Operand(self.writer, self.writer.cast(self.name, self.dtype, dtype), dtype)

    __add__, __radd__ = _operator("Add"), _reflected("Add")
    __sub__, __rsub__ = _operator("Sub"), _reflected("Sub")
    __mul__, __rmul__ = _operator("Mul"), _reflected("Mul")
    __truediv__, __rtruediv__ = _operator("Div"), _reflected("Div")
    __pow__, __rpow__ = _operator("Pow"), _reflected("Pow")
    __lt__, __le__ = _operator("Less", "bool"), _operator("LessOrEqual", "bool")
    __gt__, __ge__ = _operator("Greater", "bool"), _operator("GreaterOrEqual", "bool")
    __and__, __or__, __xor__ = _operator("And"), _operator("Or"), _operator("Xor")
    equals = _operator("Equal", "bool")  # `==` would make operands unhashable.
    maximum, minimum = _operator("Max"), _operator("Min")

    def __neg__(self) -> "Operand":
        return self.apply("Neg")

    def __abs__(self) -> "Operand":
        return self.apply("Abs")

    def __invert__(self) -> "Operand":
        return self.apply("Not")

    def unsqueeze(self, *axes: int) -> "Operand":
        """Returns the operand with axes of size 1."""
        return self.apply("Unsqueeze", self.writer.integers(*axes))

    def reshape(self, *sizes: int) -> "Operand":
        """Returns the operand in a shape of numbers, of which -1 is what remains."""
        return self.apply("Reshape", self.writer.integers(*sizes))

    def reduce(self, kind: str, axes: Sequence[int], keepdims: bool = False) -> "Operand":
        """Returns a reduction; none over no axes, which ONNX would take for all."""
        if not axes:
            return self
        return self.apply(kind, self.writer.integers(*axes), keepdims=int(keepdims))

    def is_nan(self) -> "Operand":
        """Returns where a float is NaN."""
        return self.apply("IsNaN", dtype="bool")

    def is_infinite(self, **signs: int) -> "Operand":
        """Returns where a float is infinite."""
        wide = self if self.dtype == "float64" else self.cast("float32")  # `IsInf` has no float16.
        return wide.apply("IsInf", dtype="bool", **signs)

    def is_negative(self) -> "Operand":
        """Returns where the sign bit is set. It tells -0.0 from 0.0."""
        return (where(self.equals(0), 1 / self, self) if self.is_float else self) < 0


def where(condition: Operand, then: Number, otherwise: Number) -> Operand:
    """Returns `then` where the condition is true. One of both is an operand."""
    operand = then if isinstance(then, Operand) else otherwise
    assert isinstance(operand, Operand)
    return condition.apply(
        "Where", operand.like(then), operand.like(otherwise), dtype=operand.dtype
    )


def as_operand(writer: Writer, argument: Any, dtype: str | None = None) -> Operand:
    """Returns an argument of an operation in a dtype, a value also in its own one."""
    dtype = dtype or str(argument.dtype)
    return Operand(writer, writer.tensor(argument, dtype), dtype)
