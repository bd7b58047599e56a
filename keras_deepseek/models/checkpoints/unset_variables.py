"""Building of models without random initial values, since a checkpoint will overwrite them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.layers.initializers import draws_random_numbers

_lock = threading.RLock()


@contextmanager
def unset_variables() -> Iterator[list[keras.Variable]]:
    """A context manager that makes random initializers of this thread return zeros.

    It yields the list of the variables that they filled. Variables with another initializer, such
    as ones or a table, are initialized as usual and are not in the list.
    """
    variables: list[keras.Variable] = []
    thread = threading.get_ident()
    add_weight = keras.Layer.add_weight
    unset = backend.current().compute.unset_initializer()

    def add_zeros(
        layer: keras.Layer, shape: Any = None, initializer: Any = None, *args: Any, **kwargs: Any
    ) -> keras.Variable:
        is_here = threading.get_ident() == thread
        if not (is_here and draws_random_numbers(initializer)):
            return add_weight(layer, shape, initializer, *args, **kwargs)
        variable = add_weight(layer, shape, unset, *args, **kwargs)
        variables.append(variable)
        return variable

    # Without a lock, two threads at once could leave the patched method in place for ever.
    with _lock, temporary_attributes(keras.Layer, add_weight=add_zeros):
        yield variables
