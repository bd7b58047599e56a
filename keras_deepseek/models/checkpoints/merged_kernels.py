"""The kernels of layers that a LoRA was added to: a checkpoint has the sum of the two."""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.backend.layer_tree import inner_layers, own_variables

_MERGED_NAMES = ("kernel", "embeddings")


def own_variable(layer: keras.Layer, name: str = "kernel") -> keras.Variable:
    """Returns a layer's own variable of a name, also where a LoRA is enabled.

    The attribute, as in `dense.kernel`, then is a tensor: the sum of the two.

    Args:
        layer: `keras.Layer`.
        name: string. Defaults to `"kernel"`.

    Raises:
        InvalidInputError: It has no such variable.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(2)
    >>> dense.build((None, 3))
    >>> dense.enable_lora(1)
    >>> own_variable(dense).shape
    (3, 2)
    """
    for variable in own_variables(layer):
        if variable.name == name:
            return variable
    names = [variable.name for variable in own_variables(layer)]
    raise InvalidInputError(f"The layer {layer.name!r} has no variable {name!r}, only {names}.")


def merged_kernels(model: keras.Model) -> dict[int, Callable[[], Any]]:
    """Returns functions that compute kernels with their LoRA, by the `id` of the kernel's variable.

    Args:
        model: `keras.Model`.
    """
    return {
        id(variable): (lambda layer=layer, name=variable.name: getattr(layer, name))  # type: ignore[misc]
        for layer in _all_layers(model)
        if getattr(layer, "lora_enabled", False)
        for variable in own_variables(layer)
        if variable.name in _MERGED_NAMES
    }


def _all_layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    yield layer
    for inner in inner_layers(layer):
        yield from _all_layers(inner)
