"""Functions that make, revive, build, call and save a layer inside another layer."""

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape, is_shape


def revive_layer(name: str, layer: Any) -> keras.Layer:
    """Returns a layer, deserialized if it was given as a config.

    `name` is that of the argument, for errors.
    """
    if isinstance(layer, dict):
        layer = keras.saving.deserialize_keras_object(layer)
    if not isinstance(layer, keras.Layer):
        raise InvalidInputError(f"`{name}` must be a Keras layer, received {layer!r}.")
    return layer


def serialize_layer(layer: keras.Layer) -> dict[str, Any]:
    """Returns the serialized config of an inner layer, for the config of its outer layer."""
    config: dict[str, Any] = keras.saving.serialize_keras_object(layer)
    # The layer around builds it, so that the paths of its variables stay the same.
    config.pop("build_config", None)
    return config


def clone_layers(name: str, layer: Any, count: int) -> list[keras.Layer]:
    """Returns `count` layers of the same config with separate weights, named `NAME_1` and so on."""
    if isinstance(layer, dict):
        config, make = layer["config"], keras.saving.deserialize_keras_object
    else:
        # Serialized once: while Keras loads a model, it marks a layer that is serialized twice as
        # shared, and the clones would share their inner layers.
        config, make = revive_layer(name, layer).get_config(), type(layer).from_config
    clones = []
    for index in range(1, count + 1):
        renamed = {**copy.deepcopy(config), "name": f"{name}_{index}"}
        clones.append(
            revive_layer(
                name,
                make({**layer, "config": renamed}) if isinstance(layer, dict) else make(renamed),
            )
        )
    return clones


def build_layer(layer: keras.Layer, input_shape: Shape, dtype: str) -> None:
    """Builds a layer by a symbolic call, which also works for a layer without its own `build`."""
    if not layer.built:
        layer(keras.KerasTensor(input_shape, dtype=dtype))


def call_layer(layer: keras.Layer, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
    """Calls a layer with its inputs and keyword arguments, and with the mask if it takes one."""
    check_call_arguments(layer, kwargs)
    return layer(inputs, **kwargs, **take_arguments(layer, mask=mask))


def take_arguments(layer: keras.Layer, **kwargs: Any) -> dict[str, Any]:
    """Returns the keyword arguments that are not `None` and that the layer's `call` accepts."""
    names = inspect.signature(layer.call).parameters
    return {name: value for name, value in kwargs.items() if value is not None and name in names}


def check_call_arguments(layer: keras.Layer, names: Iterable[str]) -> None:
    """Raises an error if a layer's `call` lacks one of the named arguments."""
    parameters = inspect.signature(layer.call).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # Keras's own models accept any argument, and silently drop unknown ones.
    drops = isinstance(layer, keras.Model) and type(layer).call.__module__.startswith("keras.")
    for name in names:
        if name not in parameters and (drops or not takes_any):
            raise InvalidInputError(
                f"{layer.name!r}, a {type(layer).__name__}, takes no `{name}`. Omit it, or use a "
                "layer whose `call` has this argument."
            )


def check_kept_shape(name: str, layer: keras.Layer, outputs: Any, expected: Shape) -> None:
    """Raises an error if the output shape of an inner layer differs from its input shape.

    `name` is that of the layer around, for errors.
    """
    received = tuple(outputs.shape) if hasattr(outputs, "shape") else None
    if received is None or not is_shape(received, expected):
        what = type(outputs).__name__ if received is None else f"the shape {received}"
        raise InvalidInputError(
            f"{name!r} needs a layer that keeps the shape of its inputs, {tuple(expected)}; "
            f"{layer.name!r}, a {type(layer).__name__}, returned {what}."
        )


def make_token_norm(layer: Any, name: str, dim: int) -> keras.layers.RMSNormalization:
    """Makes and builds an RMS normalization of the last axis that passes masks on."""
    norm = keras.layers.RMSNormalization(
        epsilon=layer.epsilon, dtype=layer.dtype_policy, trainable=layer.trainable, name=name
    )
    norm.supports_masking = True  # Correct for this axis: it transforms each token by itself.
    norm.build((None, None, dim))
    return norm
