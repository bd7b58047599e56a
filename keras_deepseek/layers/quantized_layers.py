"""Functions that quantize the layers inside a loaded layer again, as those of the saved one were.

Keras saves the dtype policy of a layer, but not the policies of the layers that it makes itself.
"""

from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers, own_variables
from keras_deepseek.errors import InvalidInputError


class CompositeLayer(keras.Layer):
    """A layer with layers of its own, which are quantized again when a file is loaded."""

    def get_build_config(self) -> dict[str, Any] | None:
        """Returns the shapes that the layer was built for, and its quantized layers."""
        config: dict[str, Any] | None = super().get_build_config()
        quantized = describe_quantized(self)
        return {**(config or {}), "quantized_layers": quantized} if quantized else config

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the layer, and quantizes its layers.

        Args:
            config: dict. What `get_build_config` returned.
        """
        super().build_from_config(config)
        quantize_again(self, config.get("quantized_layers", {}))


def describe_quantized(layer: keras.Layer) -> dict[str, Any]:
    """Returns the modes and configs of quantized layers in a layer, by path, as a dict for JSON."""
    return {
        path: {
            "mode": inner.quantization_mode,
            "config": keras.saving.serialize_keras_object(
                getattr(inner, "quantization_config", None)
            ),
        }
        for path, inner in _layers_by_path(layer).items()
        if inner.quantization_mode is not None
    }


def quantize_again(layer: keras.Layer, described: dict[str, Any]) -> None:
    """Quantizes the layers in a layer, from the dict that `describe_quantized` returned."""
    layers = _layers_by_path(layer) if described else {}
    for path, how in described.items():
        if path not in layers:
            raise InvalidInputError(
                f"The saved model has a layer {path!r}, quantized to {how['mode']!r}, and "
                f"{layer.name!r} has none. It was saved by another release of keras_deepseek."
            )
        if layers[path].quantization_mode is None:  # A `DTypePolicyMap` may have quantized it.
            config = keras.saving.deserialize_keras_object(how["config"])
            layers[path].quantize(how["mode"], type_check=False, config=config)


def _layers_by_path(layer: keras.Layer) -> dict[str, keras.Layer]:
    """Returns the layers in a layer that own variables, by their paths below it."""
    return {
        variables[0].path.rpartition("/")[0].removeprefix(f"{layer.path}/"): inner
        for inner in flatten_layers(layer)
        if (variables := own_variables(inner))
    }
