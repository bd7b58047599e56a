"""A context manager in which calls of a model leave its state unchanged."""

import contextlib
from collections.abc import Iterator

import keras

from keras_deepseek.backend.host_values import read_values
from keras_deepseek.backend.keras_private.layers import block_states, flatten_layers


@contextlib.contextmanager
def unchanged_state(model: keras.Model) -> Iterator[None]:
    """Context manager that restores a model's counters, seeds and other states at the end."""
    variables = block_states(model)
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:  # Keras lists them nowhere.
            variables += [state for state in keras.tree.flatten(layer.states) if state is not None]
    old_values = read_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, old_values, strict=True):
            variable.assign(value)
