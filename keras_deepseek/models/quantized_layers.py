"""Which layers of a model `model.quantize` has changed: a `.keras` file of a config says it beside.

Keras writes it into the config of each layer; a `ConfigModel` makes its layers anew by its own.
"""

from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers, own_variables
from keras_deepseek.errors import InvalidInputError


def describe_quantized(model: keras.Model) -> dict[str, Any]:
    """Returns how layers are quantized, by their paths: a dict for JSON.

    Args:
        model: `keras.Model`.
    """
    return {
        path: {
            "mode": layer.quantization_mode,
            "config": keras.saving.serialize_keras_object(
                getattr(layer, "quantization_config", None)
            ),
        }
        for path, layer in _layers_by_path(model).items()
        if layer.quantization_mode is not None
    }


def quantize_again(model: keras.Model, described: dict[str, Any]) -> None:
    """Quantizes layers of a model as those were that `describe_quantized` has told of.

    Args:
        model: `keras.Model`, made like that one.
        described: dict.

    Raises:
        InvalidInputError: It has no such layer.
    """
    layers = _layers_by_path(model) if described else {}
    for path, how in described.items():
        if path not in layers:
            raise InvalidInputError(
                f"The model {model.name!r} has no layer {path!r}, which is quantized by "
                f"{how['mode']!r} in what was saved: it is of another release of keras_deepseek."
            )
        if layers[path].quantization_mode is None:  # A `DTypePolicyMap` may have said it already.
            config = keras.saving.deserialize_keras_object(how["config"])
            layers[path].quantize(how["mode"], type_check=False, config=config)


def _layers_by_path(model: keras.Model) -> dict[str, keras.Layer]:
    """Returns the layers that have variables of their own, by where these stand in the model."""
    return {
        own[0].path.rpartition("/")[0]: layer
        for layer in flatten_layers(model)
        if (own := own_variables(layer))
    }
