"""Sizes that remember how they were computed from the axes of a model's inputs."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from keras_deepseek.errors import NotSupportedError
from keras_deepseek.graph.ir import Shape, Value

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}
"""The arithmetic of sizes, as Python computes it: divisions round down."""


@dataclasses.dataclass(frozen=True)
class InputAxis:
    """The size of an axis of an input, by the index of the input."""

    input: int
    axis: int


@dataclasses.dataclass(frozen=True)
class ValueAxis:
    """The size of an axis of a value inside the graph."""

    value: Value
    axis: int


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """An operator of `OPERATORS`, by name, between two expressions."""

    operator: str
    left: "Expression"
    right: "Expression"


Axis: TypeAlias = InputAxis | ValueAxis
Expression: TypeAlias = int | Axis | Arithmetic


@dataclasses.dataclass(frozen=True)
class FreeAxis:
    """An axis whose size differs between batches, and the axes of inputs that have this size."""

    input_axes: tuple[tuple[int, int], ...]  # Pairs: the index of an input, and an axis of it.

    @property
    def is_batch(self) -> bool:
        """True for the batch axis."""
        return self.input_axes[0][1] == 0

    @property
    def first(self) -> InputAxis:
        """The axis of which the size is read."""
        return InputAxis(*self.input_axes[0])

    def __str__(self) -> str:
        return " and ".join(f"axis {axis} of input {index}" for index, axis in self.input_axes)


def has_free_axes(shapes: Sequence[Sequence[int | None]], axes: Sequence[FreeAxis]) -> bool:
    """Returns True if all axes of unknown size, in the shapes of a model's inputs, are free."""
    free = {input_axis for axis in axes for input_axis in axis.input_axes}
    return all(
        size is not None or (index, axis) in free
        for index, shape in enumerate(shapes)
        for axis, size in enumerate(shape)
    )


class OneSizeError(NotSupportedError):
    """An error for a model whose program has no free sizes: it may choose what it does by one.

    Args:
        text: The message.
        shapes: Shapes of the inputs at which it was traced, to compare it with other exports on.
    """

    def __init__(self, text: str, shapes: Sequence[Sequence[Shape]]) -> None:
        super().__init__(text)
        self.shapes = shapes


def with_sizes(
    shapes: Sequence[Shape], axes: Sequence[FreeAxis], sizes: Sequence[int]
) -> list[Shape]:
    """Returns shapes with other sizes of axes."""
    changed = [list(shape) for shape in shapes]
    for axis, size in zip(axes, sizes, strict=True):
        for index, input_axis in axis.input_axes:
            changed[index][input_axis] = size
    return [tuple(shape) for shape in changed]


def evaluate(expression: Expression, size_of: Callable[[Any], Any]) -> Any:
    """Returns the value of an expression; `size_of` returns the size of an axis."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, Arithmetic):
        left, right = (evaluate(side, size_of) for side in (expression.left, expression.right))
        return OPERATORS[expression.operator](left, right)
    return size_of(expression)


def axes_of(expression: Expression) -> Iterator[Axis]:
    """Yields the axes in an expression, with repetitions."""
    if isinstance(expression, Arithmetic):
        yield from axes_of(expression.left)
        yield from axes_of(expression.right)
    elif not isinstance(expression, int):
        yield expression


Comparison: TypeAlias = tuple[Expression, Expression]
"""Two expressions that code has compared: which of them is larger may choose a branch."""


class Size(int):
    """An int, that of one trace, with the expression that computes it for any inputs.

    Arithmetic with other ints makes sizes. Comparisons are noted in a set that all sizes of a trace
    share.
    """

    expression: Expression
    comparisons: set[Comparison]

    def __new__(
        cls, value: int, expression: Expression, comparisons: set[Comparison] | None = None
    ) -> "Size":
        """Returns a size. `comparisons` is the set of its trace."""
        size = super().__new__(cls, value)
        size.expression = expression
        size.comparisons = set() if comparisons is None else comparisons
        return size

    def __copy__(self) -> "Size":
        return self

    def __deepcopy__(self, memo: Any) -> "Size":
        return self

    def __neg__(self) -> "Size":
        return Size(-int(self), Arithmetic("sub", 0, self.expression), self.comparisons)

    def __bool__(self) -> bool:
        self.comparisons.add((self.expression, 0))
        return int(self) != 0

    __hash__ = int.__hash__


def _expression(number: Any) -> Expression:
    return number.expression if isinstance(number, Size) else int(number)


def _add_arithmetic(name: str, compute: Callable[[Any, Any], Any]) -> None:
    def forward(self: Size, other: Any) -> Any:
        if type(other) not in (int, bool, Size):
            return getattr(int, f"__{name}__")(self, other)
        expression = Arithmetic(name, self.expression, _expression(other))
        return Size(compute(int(self), int(other)), expression, self.comparisons)

    def backward(self: Size, other: Any) -> Any:
        if type(other) not in (int, bool, Size):
            return getattr(int, f"__r{name}__")(self, other)
        expression = Arithmetic(name, _expression(other), self.expression)
        return Size(compute(int(other), int(self)), expression, self.comparisons)

    setattr(Size, f"__{name}__", forward)
    setattr(Size, f"__r{name}__", backward)


def _add_comparison(name: str) -> None:
    compare = getattr(int, name)

    def compared(self: Size, other: Any) -> Any:
        if isinstance(other, int) or (isinstance(other, float) and math.isfinite(other)):
            bound = _expression(other) if isinstance(other, int) else math.floor(other)
            self.comparisons.add((self.expression, bound))
        return compare(self, other)

    setattr(Size, name, compared)


for _name, _function in OPERATORS.items():
    _add_arithmetic(_name, _function)
for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
    _add_comparison(_name)
