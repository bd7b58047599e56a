"""Expressions of numbers that differ between traces of one model at several sizes."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

from keras_deepseek.graph.size_expressions import (
    Arithmetic,
    Axis,
    Expression,
    InputAxis,
    Size,
    evaluate,
)

_LARGEST_DIVISOR = 128
_NUM_SHOWN = 3

Numbers = tuple[int, ...]
"""One number of a program in each trace."""


class SizeFinder:
    """Finds the expressions of numbers, one for each trace.

    A number is the size of an axis, or was computed from sizes in ways that were recorded. Else an
    expression is fitted to the first traces. All must hold in every trace.

    Args:
        sizes: The sizes of the free axes in each trace.
        num_fitted: The number of traces to which expressions are fitted; 0 to fit none.
    """

    def __init__(self, sizes: Sequence[Mapping[InputAxis, int]], num_fitted: int) -> None:
        self._sizes = sizes
        self._num_fitted = num_fitted
        self._axes: dict[Numbers, Axis] = {
            tuple(trace[axis] for trace in sizes): axis for axis in sizes[0]
        }
        self._fitted: dict[Numbers, Expression | None] = {}

    @property
    def has_fitted(self) -> bool:
        """True if an expression was fitted."""
        return any(expression is not None for expression in self._fitted.values())

    def add_axis(self, numbers: Numbers, axis: Axis) -> None:
        """Adds an axis of a value inside the graph."""
        self._axes.setdefault(numbers, axis)

    def show(self, numbers: Sequence[int]) -> str:
        """Returns a text with the first numbers and the sizes that they belong to."""
        pairs = list(zip(numbers, self._sizes, strict=True))[:_NUM_SHOWN]
        return ", ".join(
            f"{int(number)} with size{'s' * (len(sizes) > 1)} {', '.join(map(str, sizes.values()))}"
            for number, sizes in pairs
        )

    def find(self, numbers: Sequence[int]) -> Size | None:
        """Returns the number of the first trace with its expression, or `None`.

        What was recorded may lack a size that was a plain int by then. Then it does not hold.
        """
        first = numbers[0]
        key = tuple(map(int, numbers))
        if isinstance(first, Size) and self._holds(first.expression, key):
            return Size(key[0], first.expression)
        if len(set(key)) == 1:
            return None
        expression: Expression | None = self._axes.get(key)
        if expression is None and self._num_fitted:
            if key not in self._fitted:
                self._fitted[key] = self._fit(key) or self._product(key)
            expression = self._fitted[key]
        return None if expression is None else Size(key[0], expression)

    def _holds(self, expression: Expression, numbers: Numbers, first: int | None = None) -> bool:
        pairs = zip(self._sizes[:first], numbers[:first], strict=True)
        try:
            return all(evaluate(expression, sizes.__getitem__) == number for sizes, number in pairs)
        except ZeroDivisionError:
            return False

    def _fit(self, numbers: Numbers) -> Expression | None:
        """Returns the simplest expression that holds in the first traces, if it does in others.

        Else it is the next one. No other trace confirms that, so all that are left must be equal.
        """
        left: list[Expression] = []
        is_first = True
        for expression in self._candidates(numbers[: self._num_fitted]):
            if not self._holds(expression, numbers, self._num_fitted):
                continue
            if self._holds(expression, numbers):
                left.append(expression)
                if is_first:
                    break
            is_first = False
        return left[0] if left and all(_is_equal(left[0], other) for other in left) else None

    def _product(self, numbers: Numbers) -> Expression | None:
        """Returns a multiple of one or two known axes, as of a reshape that joins them, or `None`.

        Unlike what is fitted, they may be axes of values inside the graph.
        """
        nothing: tuple[Numbers, Expression] = ((1,) * len(numbers), 1)
        columns = [nothing, *self._axes.items()]
        for (lefts, left), (rights, right) in itertools.combinations_with_replacement(columns, 2):
            products = [x * y for x, y in zip(lefts, rights, strict=True)]
            factor = numbers[0] // max(1, products[0])
            if numbers == tuple(factor * product for product in products):
                return _times(_times(right, left), factor)
        return None

    def _candidates(self, numbers: Numbers) -> Iterator[Expression]:
        """Yields expressions of free axes that may have made the numbers, simple ones first."""
        axes = list(self._sizes[0])
        columns = {axis: [sizes[axis] for sizes in self._sizes[: len(numbers)]] for axis in axes}
        for axis in axes:
            yield from _multiples(axis, columns[axis], numbers)
        for left, right in itertools.combinations_with_replacement(axes, 2):
            pairs = list(zip(columns[left], columns[right], strict=True))
            sum_expression = Arithmetic("add", left, right)
            yield from _multiples(sum_expression, [x + y for x, y in pairs], numbers)
            product = Arithmetic("mul", left, right)
            yield from _multiples(product, [x * y for x, y in pairs], numbers)
        for axis, divisor in itertools.product(axes, range(2, _LARGEST_DIVISOR + 1)):
            yield from _remainders(axis, divisor)
            for shift in range(divisor):
                quotients = [(size + shift) // divisor for size in columns[axis]]
                expression = Arithmetic("floordiv", _plus(axis, shift), divisor)
                yield from _multiples(expression, quotients, numbers)


def _is_equal(expression: Expression, other: Expression) -> bool:
    """Returns True if two expressions agree at all small sizes of the axes."""

    def size_of(axis: InputAxis, step: int) -> int:
        return step + 7 * axis.input + 3 * axis.axis

    return all(
        evaluate(expression, size := functools.partial(size_of, step=step)) == evaluate(other, size)
        for step in range(1, 3 * _LARGEST_DIVISOR)
    )


def _multiples(
    expression: Expression, values: Sequence[int], numbers: Sequence[int]
) -> Iterator[Expression]:
    """Yields `expression * factor + added`, if its first two values fit the numbers."""
    run = values[1] - values[0]
    if not run:
        return
    factor, remainder = divmod(numbers[1] - numbers[0], run)
    if factor and not remainder:
        yield _plus(_times(expression, factor), numbers[0] - factor * values[0])


def _remainders(axis: Axis, divisor: int) -> Iterator[Expression]:
    yield Arithmetic("mod", axis, divisor)
    yield Arithmetic("mod", Arithmetic("sub", 0, axis), divisor)


def _times(expression: Expression, factor: Expression) -> Expression:
    return expression if factor == 1 else Arithmetic("mul", expression, factor)


def _plus(expression: Expression, added: int) -> Expression:
    return Arithmetic("add", expression, added) if added else expression
