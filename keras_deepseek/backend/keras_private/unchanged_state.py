"""What looks at a model leaves it as it was."""

import contextlib
from collections.abc import Iterator

import keras

from keras_deepseek.backend.host_values import read_values
from keras_deepseek.backend.keras_private.layers import block_states


@contextlib.contextmanager
def unchanged_state(model: keras.Model) -> Iterator[None]:
    """Puts back what calls of a model have changed in it: counters, seeds and the like.

    Args:
        model: `keras.Model`.
    """
    variables = block_states(model)
    before = read_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
