"""Comparisons of numbers in tests: tolerances by dtype, and gradients by finite differences."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array

TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""The largest error that rounding can explain, relative to the largest expected magnitude."""

_FINITE_DIFFERENCE_TOLERANCE = 1e-2
"""The tolerance for finite differences, which lose half of float32's digits."""

_STEP = 5e-4
"""Small enough to cross few kinks (of a ReLU, a clip), large enough to exceed rounding errors."""

_NUM_DIRECTIONS = 4

_ROUNDING = 4 * float(np.finfo("float32").eps)


def assert_close(
    actual: Any, expected: Any, tolerance: str | float = "float32", what: str = "The result"
) -> None:
    """Fails unless two arrays have the same shape and the same numbers up to rounding.

    The error is relative to the largest magnitude in `expected`, because entries that cancel to
    almost zero have the rounding errors of the terms they came from.

    Args:
        actual: Array.
        expected: Array, in float64 if it comes from an oracle.
        tolerance: string or float. A dtype of `TOLERANCES`, or a number. Defaults to `"float32"`.
        what: string. The name of the array, for the message. Defaults to `"The result"`.

    Raises:
        AssertionError: They differ. The message gives the error and where it is largest.

    Example:

    >>> from keras_deepseek.testing import assert_close
    >>> assert_close([1.0, 2.0], [1.0, 2.000001])
    """
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {actual.shape}, expected {expected.shape}.")
    if not expected.size:
        return
    limit = TOLERANCES[tolerance] if isinstance(tolerance, str) else tolerance
    error = np.abs(actual - expected) / (np.abs(expected).max() or 1.0)
    if not np.all(error <= limit):  # Written so that NaN fails.
        worst = tuple(map(int, np.unravel_index(np.argmax(error), error.shape)))
        raise AssertionError(
            f"{what}: relative error {error[worst]:.3g} at {worst} ({actual[worst]:.7g}, expected "
            f"{expected[worst]:.7g}); at most {limit:.3g} is allowed."
        )


def assert_gradients(
    function: Callable[[Sequence[Array]], Array],
    arrays: Sequence[Array],
    gradients: Sequence[Array],
    names: Sequence[str],
) -> None:
    """Fails if `gradients` differ from the numerical gradients of the sum of `function`.

    Each array a is moved along a few random directions d, whose entries are 1 or -1. So every entry
    is covered, and the cost does not grow with the size. The product of the gradient and d must lie
    between two slopes: ahead, (f(a + hd) - f(a)) / h, and behind, (f(a) - f(a - hd)) / h. These are
    almost equal, unless there is a kink between them.

    A gradient that is exactly zero, such as that of a bias before a softmax, measures as float32's
    rounding error divided by h; that much is allowed.

    Args:
        function: Function of the arrays that returns the terms of a sum, in float64.
        arrays: The arguments at which the gradients were computed.
        gradients: One for each array.
        names: The name of each array, for the message.

    Raises:
        AssertionError: A gradient differs. The message names the array.
    """
    rng = np.random.default_rng(0)
    here = function(arrays)
    noise = _ROUNDING * float(np.linalg.norm(here)) / _STEP
    for index, (array, gradient, name) in enumerate(zip(arrays, gradients, names, strict=True)):
        # The defaults bind the loop's variables, as each function must have its own.
        def moved(step: Array, index: int = index, array: Array = array) -> Array:
            return function([*arrays[:index], array + step, *arrays[index + 1 :]])

        steps = _STEP * rng.choice([-1.0, 1.0], (_NUM_DIRECTIONS, *array.shape)).astype(array.dtype)
        derived = [np.vdot(gradient.astype("float64"), step / _STEP) for step in steps]
        ahead = [np.sum(moved(step) - here) / _STEP for step in steps]
        behind = [np.sum(here - moved(-step)) / _STEP for step in steps]
        # The number between both slopes that is nearest to the derived one.
        measured = np.clip(derived, np.minimum(ahead, behind), np.maximum(ahead, behind))
        largest = float(np.abs(measured).max()) or 1.0
        assert_close(
            derived,
            measured,
            _FINITE_DIFFERENCE_TOLERANCE + noise / largest,
            f"Gradient by {name} against finite differences",
        )
