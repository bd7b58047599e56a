"""Saving and restoring of the list of quantized layers of a model.

Keras writes it into the config of each layer. A `ConfigModel` builds its layers from its own
config, so its `.keras` file has to hold the list separately.
"""

from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers, own_variables
from keras_deepseek.errors import InvalidInputError


def describe_quantized(model: keras.Model) -> dict[str, Any]:
    """Returns the quantization mode of each quantized layer, by layer path, as a dict for JSON."""
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
    """Quantizes a model's layers again, from the dict that `describe_quantized` returned."""
    layers = _layers_by_path(model) if described else {}
    for path, how in described.items():
        if path not in layers:
            raise InvalidInputError(
                f"The saved model has a layer {path!r}, quantized to {how['mode']!r}, and "
                f"{model.name!r} has none. It was saved by another release of keras_deepseek."
            )
        if layers[path].quantization_mode is None:  # A `DTypePolicyMap` may have quantized it.
            config = keras.saving.deserialize_keras_object(how["config"])
            layers[path].quantize(how["mode"], type_check=False, config=config)


def _layers_by_path(model: keras.Model) -> dict[str, keras.Layer]:
    """Returns the layers that own variables, by their paths in the model."""
    return {
        variables[0].path.rpartition("/")[0]: layer
        for layer in flatten_layers(model)
        if (variables := own_variables(layer))
    }
