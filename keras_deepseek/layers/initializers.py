"""What layers with several kernels need to know about Keras's initializers."""

from typing import Any

import keras


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

    def initialize(shape: tuple[int, ...], dtype: Any = None) -> Any:
        return initializer(shape, dtype=dtype) * count**0.5

    return initialize
