"""Functions that add a layer's LoRA to its kernel, since a checkpoint stores only the sum."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import inner_layers, own_variables
from keras_deepseek.errors import InvalidInputError, NotSupportedError


def own_variable(layer: keras.Layer, name: str = "kernel") -> keras.Variable:
    """Returns a layer's own variable by attribute name, without its LoRA.

    With a LoRA the attribute, as in `dense.kernel`, is a tensor: the sum of both.
    """
    for variable in own_variables(layer):
        if variable.name == name:
            return variable
    names = [variable.name for variable in own_variables(layer)]
    raise InvalidInputError(f"The layer {layer.name!r} has no variable {name!r}, only {names}.")


def merged_kernels(model: keras.Model) -> dict[int, Callable[[], Any]]:
    """Returns functions that compute kernels plus their LoRA, by the `id` of the kernel."""
    return {
        id(own_variable(layer, merged_name(layer))): (lambda layer=layer: merged_value(layer))  # type: ignore[misc]
        for layer in _all_layers(model)
        if getattr(layer, "lora_enabled", False)
    }


def check_not_quantized(model: keras.Model) -> None:
    """Raises an error if a layer is quantized: a checkpoint can't store quantization scales."""
    quantized = [layer.path for layer in _all_layers(model) if layer.quantization_mode]
    if quantized:
        raise NotSupportedError(
            f"{len(quantized)} layers are quantized, such as {quantized[0]!r}, and a preset "
            "holds floating-point numbers. Save it before `quantize`, or as a `.keras` file."
        )


def merged_name(layer: keras.Layer) -> str:
    """Returns the attribute name of the variable to which a Keras layer adds its LoRA."""
    return "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"


def merged_value(layer: keras.Layer) -> Any:
    """Returns the sum of a layer's kernel and its LoRA, in the kernel's dtype.

    The attribute, as in `dense.kernel`, is rounded to the compute dtype. Under a mixed policy the
    whole kernel would lose precision, not only the LoRA.
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
