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
