"""The difference of two outputs of a model, for the checks when a version starts."""

import numpy as np

from keras_deepseek.artifacts.signature import Array

_LEAST_SCALE = 1e-2
"""Values below it count as differences from zero, not relative to themselves."""


def relative_difference(expected: Array, received: Array) -> float:
    """Returns the largest difference of two arrays, divided by the largest finite expected value.

    NaN equals NaN. The result is infinite if the shapes differ, if strings differ, or if a value is
    finite in one array alone.
    """
    if expected.shape != received.shape:
        return float("inf")
    if expected.dtype.kind in "OSU":
        return 0.0 if np.array_equal(expected, received) else float("inf")
    left, right = expected.astype("float64"), received.astype("float64")
    is_same = (left == right) | (np.isnan(left) & np.isnan(right))
    if is_same.all():
        return 0.0
    is_finite = np.isfinite(left) & np.isfinite(right)
    if not (is_same | is_finite).all():
        return float("inf")
    largest = np.abs(left[np.isfinite(left)]).max()
    return float(np.abs(left - right)[~is_same].max() / max(largest, _LEAST_SCALE))
