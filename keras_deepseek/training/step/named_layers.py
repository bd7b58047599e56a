"""Finds layers by patterns of their names, as in `["block_*"]`."""

import fnmatch
from collections.abc import Sequence

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import InvalidInputError

_MOST_NAMES = 20  # The most names that an error lists.


def find_named_layers(
    model: keras.Model, argument: str, patterns: Sequence[str]
) -> list[keras.Layer]:
    """Returns the layers, at any depth, whose names match one of the patterns.

    Patterns may contain `*` and `?`. Raises an error, which names the `argument`, if one matches no
    layer.
    """
    layers = [layer for layer in flatten_layers(model) if layer is not model]
    for pattern in patterns:
        if not fnmatch.filter([layer.name for layer in layers], pattern):
            names = ", ".join(sorted({layer.name for layer in layers})[:_MOST_NAMES])
            raise InvalidInputError(
                f"{argument}={pattern!r} names no layer of {model.name!r}. Its layers: {names}."
            )
    return [
        layer
        for layer in layers
        if any(fnmatch.fnmatch(layer.name, layer_pattern) for layer_pattern in patterns)
    ]


def are_names(value: object) -> bool:
    """Returns True if a value is a list or tuple of strings."""
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
