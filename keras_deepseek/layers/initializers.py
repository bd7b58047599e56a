"""Initializers for layers that stack several kernels in one variable."""

from typing import Any

import keras

_RANDOM = (
    keras.initializers.Orthogonal,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,  # Glorot's, He's and LeCun's are of this class.
)


def clone_initializer(initializer: Any) -> Any:
    """Returns a copy of an initializer that draws different random values.

    An initializer draws the same numbers each time it is called for a shape, so two kernels that
    share one would start equal. An explicit seed is kept. A plain function has no state and is
    returned unchanged.
    """
    is_class = isinstance(initializer, keras.initializers.Initializer)
    return initializer.clone() if is_class else initializer


def stack_initializer(initializer: Any, count: int) -> Any:
    """Returns an initializer for `count` stacked kernels, each drawn as if alone.

    Keras would count the axis of the kernels as part of each kernel's fan, and draw too small
    numbers.
    """
    initializer = clone_initializer(initializer)
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer

    return _ScaledInitializer(initializer, count**0.5)


def draws_random_numbers(initializer: Any) -> bool:
    """Returns True if an initializer draws random values, False if its values are fixed.

    `None` is Keras's random default.
    """
    if initializer is None or isinstance(initializer, _ScaledInitializer):
        return True
    if isinstance(initializer, str | dict):
        initializer = keras.initializers.get(initializer)
    return isinstance(initializer, _RANDOM)


class _ScaledInitializer:
    def __init__(self, initializer: Any, factor: float) -> None:
        self._initializer = initializer
        self._factor = factor

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return self._initializer(shape, dtype=dtype) * self._factor
