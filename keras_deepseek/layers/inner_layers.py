"""What layers that are made around a user's own layer need: to revive, build, call and save it."""

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape, is_shape


def revive_layer(name: str, layer: Any) -> keras.Layer:
    """Returns a layer that was given as such, or as its serialized config.

    Args:
        name: string. The argument, as the error names it.
        layer: `keras.Layer` or dict.

    Raises:
        InvalidInputError: It is neither.
    """
    if isinstance(layer, dict):
        layer = keras.saving.deserialize_keras_object(layer)
    if not isinstance(layer, keras.Layer):
        raise InvalidInputError(f"`{name}` must be a Keras layer, received {layer!r}.")
    return layer


def serialize_layer(layer: keras.Layer) -> dict[str, Any]:
    """Returns the config of an inner layer, for the config of the one around it.

    Args:
        layer: `keras.Layer`.
    """
    config: dict[str, Any] = keras.saving.serialize_keras_object(layer)
    # The layer around builds it, so that the paths of the variables are as they were.
    config.pop("build_config", None)
    return config


def clone_layers(name: str, layer: Any, count: int) -> list[keras.Layer]:
    """Returns layers of the same config, each with weights of its own, named `NAME_1` and so on.

    Args:
        name: string. The argument, as the error names it, and the clones.
        layer: `keras.Layer` or its serialized config.
        count: integer. How many.

    Raises:
        InvalidInputError: It is neither a layer nor the config of one.
    """
    if isinstance(layer, dict):
        config, make = layer["config"], keras.saving.deserialize_keras_object
    else:
        # Read once: Keras marks what it serializes a second time, while it loads a model, as
        # shared, and the clones would share their own inner layers.
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
    """Builds a layer by a symbolic call, which also builds one without a `build` of its own.

    Args:
        layer: `keras.Layer`.
        input_shape: tuple. The shape of its inputs.
        dtype: string. Their dtype.
    """
    if not layer.built:
        layer(keras.KerasTensor(input_shape, dtype=dtype))


def call_layer(layer: keras.Layer, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
    """Calls a layer, with the mask if it takes one.

    Args:
        layer: `keras.Layer`.
        inputs: Tensor.
        mask: Boolean tensor or `None`.
        **kwargs: Further arguments of the call.

    Raises:
        InvalidInputError: The layer does not take one of these.
    """
    check_call_arguments(layer, kwargs)
    return layer(inputs, **kwargs, **take_arguments(layer, mask=mask))


def take_arguments(layer: keras.Layer, **kwargs: Any) -> dict[str, Any]:
    """Returns those of the arguments that are given, and that a layer's `call` names.

    Args:
        layer: `keras.Layer`.
        **kwargs: Arguments that a layer may do without.
    """
    names = inspect.signature(layer.call).parameters
    return {name: value for name, value in kwargs.items() if value is not None and name in names}


def check_call_arguments(layer: keras.Layer, names: Iterable[str]) -> None:
    """Raises an error where a layer can't be called with an argument.

    Args:
        layer: `keras.Layer`.
        names: The arguments beside the inputs.

    Raises:
        InvalidInputError: The layer does not take one of them.
    """
    parameters = inspect.signature(layer.call).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # Keras's own models take any argument, and drop what none of their layers has registered.
    drops = isinstance(layer, keras.Model) and type(layer).call.__module__.startswith("keras.")
    for name in names:
        if name not in parameters and (drops or not takes_any):
            raise InvalidInputError(
                f"{layer.name!r}, a {type(layer).__name__}, takes no `{name}`: leave it out, or "
                "give a layer whose `call` has such an argument."
            )


def check_kept_shape(name: str, layer: keras.Layer, outputs: Any, expected: Shape) -> None:
    """Raises an error where an inner layer has not kept the shape of its inputs.

    Args:
        name: string. The layer around, as the error names it.
        layer: `keras.Layer`. The inner layer.
        outputs: What it returned.
        expected: tuple. The shape of its inputs, `None` for sizes that are not known.

    Raises:
        InvalidInputError: It returned no tensor, or one of another shape.
    """
    received = tuple(outputs.shape) if hasattr(outputs, "shape") else None
    if received is None or not is_shape(received, expected):
        what = type(outputs).__name__ if received is None else f"the shape {received}"
        raise InvalidInputError(
            f"{name!r} needs a layer that keeps the shape of its inputs, {tuple(expected)}; "
            f"{layer.name!r}, a {type(layer).__name__}, returned {what}."
        )
