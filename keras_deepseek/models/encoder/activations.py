"""Activation functions of feed-forward networks, by their names in a `config.json`."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError, unknown_name_message


@keras.saving.register_keras_serializable("keras_deepseek")
def gelu_approximate(x: Any) -> Any:
    """Returns the `tanh` approximation of GELU."""
    return keras.activations.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": keras.activations.gelu,
    "gelu_approximate": gelu_approximate,
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
    "tanh": keras.activations.tanh,
}


def read_activation(name: str) -> Callable[[Any], Any]:
    """Returns the activation function for a name in a config, one of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise InvalidInputError(unknown_name_message("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]
