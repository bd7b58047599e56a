"""What layers with several kernels need to know about Keras's initializers."""

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
    """Returns a fresh initializer of the same kind.

    An initializer draws the same numbers each time it is called for a shape, so two kernels that
    share one would start equal. A seed that was given stays; a plain function, which has no state,
    is returned as it is.

    Args:
        initializer: `keras.initializers.Initializer` or a function.
    """
    is_class = isinstance(initializer, keras.initializers.Initializer)
    return initializer.clone() if is_class else initializer


def stack_initializer(initializer: Any, count: int) -> Any:
    """Returns what initializes kernels of shape `(count, rows, columns)`, each as if alone.

    Keras takes the axis of the kernels for a part of each one's fan, and draws them too small.

    Args:
        initializer: `keras.initializers.Initializer` or a function.
        count: integer. How many kernels are stacked.
    """
    initializer = clone_initializer(initializer)
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer

    return _ScaledInitializer(initializer, count**0.5)


def draws_random_numbers(initializer: Any) -> bool:
    """Returns whether what initializes a variable is random, and not a value of its own.

    Args:
        initializer: As `keras.Layer.add_weight` takes it; `None` is Keras's random default.
    """
    if initializer is None or isinstance(initializer, _ScaledInitializer):
        return True
    if isinstance(initializer, str | dict):
        initializer = keras.initializers.get(initializer)
    return isinstance(initializer, _RANDOM)


class _ScaledInitializer:
    """What another initializer draws, times a number."""

    def __init__(self, initializer: Any, factor: float) -> None:
        self._initializer = initializer
        self._factor = factor

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return self._initializer(shape, dtype=dtype) * self._factor
