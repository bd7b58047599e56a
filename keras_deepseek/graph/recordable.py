"""The rule for models whose operations may be recorded, and run without their Python."""

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.graph.known_code import find_foreign_code


def find_obstacle(model: keras.Model) -> str | None:
    """Returns a reason why the layers of a model can't be recorded, or `None`."""
    for layer in flatten_layers(model):
        if code := find_foreign_code(layer):
            return f"layer {layer.name!r} has code that is not known, {code}"
    return None
