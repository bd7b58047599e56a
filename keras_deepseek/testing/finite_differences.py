"""Numerical gradients, with which `LayerTestCase` checks automatic gradients."""

from collections.abc import Callable, Sequence

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.testing.tolerances import FINITE_DIFFERENCE_TOLERANCE, assert_close

STEP = 5e-4
"""Small enough to cross few kinks (of a ReLU, a clip), large enough to exceed rounding errors."""

NUM_DIRECTIONS = 4

ROUNDING = 4 * float(np.finfo("float32").eps)


def assert_gradients(
    function: Callable[[Sequence[Array]], Array],
    arrays: Sequence[Array],
    gradients: Sequence[Array],
    names: Sequence[str],
) -> None:
    """Fails if `gradients` differ from the numerical gradients of the sum of `function`.

    Each array is moved along a few random directions of signs, so the cost does not grow with its
    size and every entry is covered. The product of the gradient and a direction d must lie between
    the slopes ahead, (f(a + hd) - f(a)) / h, and behind, (f(a) - f(a - hd)) / h. These are almost
    equal, unless there is a kink between them. A gradient that is exactly zero, such as that of a
    bias before a softmax, measures as float32's rounding error divided by h; that much is allowed.

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
    noise = ROUNDING * float(np.linalg.norm(here)) / STEP
    for index, (array, gradient, name) in enumerate(zip(arrays, gradients, names, strict=True)):

        def moved(step: Array, index: int = index, array: Array = array) -> Array:
            return function([*arrays[:index], array + step, *arrays[index + 1 :]])

        steps = STEP * rng.choice([-1.0, 1.0], (NUM_DIRECTIONS, *array.shape)).astype(array.dtype)
        derived = [np.vdot(gradient.astype("float64"), step / STEP) for step in steps]
        ahead = [np.sum(moved(step) - here) / STEP for step in steps]
        behind = [np.sum(here - moved(-step)) / STEP for step in steps]
        measured = np.clip(derived, np.minimum(ahead, behind), np.maximum(ahead, behind))
        largest = float(np.abs(measured).max()) or 1.0
        assert_close(
            derived,
            measured,
            FINITE_DIFFERENCE_TOLERANCE + noise / largest,
            f"Gradient by {name} against finite differences",
        )
