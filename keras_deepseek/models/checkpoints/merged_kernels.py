"""The kernels of layers that a LoRA was added to: a checkpoint has the sum of the two."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layer_tree import inner_layers, own_variables
from keras_deepseek.errors import InvalidInputError, NotSupportedError


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
    >>> tuple(own_variable(dense).shape)
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
        id(own_variable(layer, merged_name(layer))): (lambda layer=layer: merged_value(layer))  # type: ignore[misc]
        for layer in _all_layers(model)
        if getattr(layer, "lora_enabled", False)
    }


def check_not_quantized(model: keras.Model) -> None:
    """Says where kernels are no numbers but codes, whose scales a checkpoint has no place for.

    Args:
        model: `keras.Model`.

    Raises:
        NotSupportedError: Layers are quantized.
    """
    quantized = [layer.path for layer in _all_layers(model) if layer.quantization_mode]
    if quantized:
        raise NotSupportedError(
            f"{len(quantized)} layers are quantized, {quantized[0]!r} the first, and a preset "
            "holds floating-point numbers. Save it before `quantize`, or as a `.keras` file."
        )


def merged_name(layer: keras.Layer) -> str:
    """Returns the name of the variable that a layer of Keras adds a LoRA to.

    Args:
        layer: `keras.Layer` with an `enable_lora`.
    """
    return "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"


def merged_value(layer: keras.Layer) -> Any:
    """Returns a kernel with its LoRA, in the variable's dtype.

    The attribute, as in `dense.kernel`, is rounded to what the layer computes in: under a mixed
    policy all of the kernel, not the LoRA alone, would lose digits.

    Args:
        layer: `keras.Layer` that has a LoRA.
    """
    name = merged_name(layer)
    kernel = own_variable(layer, name)
    a, b = getattr(layer, f"lora_{name}_a"), getattr(layer, f"lora_{name}_b")
    dtype = keras.backend.result_type(kernel.dtype, a.dtype)
    added = ops.matmul(a.value, b.value) * (layer.lora_alpha / layer.lora_rank)
    return ops.cast(ops.cast(kernel.value, dtype) + ops.cast(added, dtype), kernel.dtype)


def _all_layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    yield layer
    for inner in inner_layers(layer):
        yield from _all_layers(inner)
