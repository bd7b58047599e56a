"""Numeric tolerances by dtype, for all comparisons in tests."""

from typing import Any

import numpy as np

TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""The largest error that rounding can explain, relative to the largest expected magnitude."""

FINITE_DIFFERENCE_TOLERANCE = 1e-2
"""The tolerance for finite differences, which lose half of float32's digits."""


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
