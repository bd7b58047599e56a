"""Functions for quantized layers inside other layers, and for the logits of a quantized embedding.

Keras saves the dtype policy of a layer, but not the policies of the layers that it makes itself.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import flatten_layers, own_variables
from keras_deepseek.backend.keras_private.quantization import (
    count_summed_axes,
    read_int8_kernel,
    read_reverse_kernel,
    reverse_variables,
    rounds_rows_to_int8,
)
from keras_deepseek.backend.keras_private.temporary_attributes import temporary_attributes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.opaque_operation import call_opaque


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


def quantize_again(layer: keras.Layer, quantizations: dict[str, Any]) -> None:
    """Quantizes the layers in a layer, from the dict that `describe_quantized` returned."""
    layers = _layers_by_path(layer) if quantizations else {}
    for path, quantization in quantizations.items():
        if path not in layers:
            raise InvalidInputError(
                f"The saved model has a layer {path!r}, quantized to {quantization['mode']!r}, and "
                f"{layer.name!r} has none. It was saved by another release of keras_deepseek."
            )
        if layers[path].quantization_mode is None:  # A `DTypePolicyMap` may have quantized it.
            config = keras.saving.deserialize_keras_object(quantization["config"])
            layers[path].quantize(quantization["mode"], type_check=False, config=config)


def _layers_by_path(layer: keras.Layer) -> dict[str, keras.Layer]:
    """Returns the layers in a layer that own variables, by their paths below it."""
    return {
        variables[0].path.rpartition("/")[0].removeprefix(f"{layer.path}/"): inner
        for inner in flatten_layers(layer)
        if (variables := own_variables(inner))
    }


def call_quantized(layer: Any, inputs: Any) -> Any:
    """Returns `layer(inputs)` of a `Dense` or `EinsumDense`, in int8 with the fastest product.

    The numbers are those of Keras, whose own product of integers is slow on CPUs.
    """
    number = None if isinstance(inputs, keras.KerasTensor) else count_summed_axes(layer)
    if number is None:
        return layer(inputs)
    dtype = layer.compute_dtype
    inputs = ops.cast(inputs, dtype)
    kernel, scale = read_int8_kernel(layer)
    sizes, summed = ops.shape(inputs)[:-number], math.prod(kernel.shape[:number])
    rows = ops.reshape(inputs, (-1, summed))
    scale = ops.reshape(ops.cast(scale, dtype), (-1,))

    def compute(rows: Any, kernel: Any, scale: Any) -> Any:
        return _multiply(rows, layer.inputs_quantizer, kernel, scale)

    def differentiate(upstream: Any, _: Any, kernel: Any, scale: Any) -> list[Any]:
        return [ops.matmul(upstream, ops.transpose(ops.cast(kernel, dtype) / scale))]

    outputs = backend.current().compute.apply_with_gradient(
        compute, differentiate, [rows], [ops.reshape(kernel, (summed, -1)), scale]
    )
    outputs = ops.reshape(outputs, (*sizes, *kernel.shape[number:]))
    if layer.lora_enabled:
        lora_a, lora_b = map(ops.convert_to_tensor, (layer.lora_kernel_a, layer.lora_kernel_b))
        products = ops.matmul(rows, ops.reshape(lora_a, (summed, -1)))
        products = ops.matmul(ops.reshape(products, (*sizes, *lora_a.shape[number:])), lora_b)
        outputs = ops.cast(ops.add(outputs, products * (layer.lora_alpha / layer.lora_rank)), dtype)
    if layer.bias is not None:
        outputs = ops.add(outputs, layer.bias)
    return outputs if layer.activation is None else layer.activation(outputs)


def _multiply(rows: Any, quantizer: Any, kernel: Any, scale: Any) -> Any:
    """Multiplies rows, which it rounds to int8, by an int8 kernel whose columns have a scale."""
    integers, scale_of_rows = quantizer(rows, axis=-1)
    product = backend.current().compute.multiply_int8(integers, kernel)
    return ops.cast(product, rows.dtype) / (scale_of_rows * scale)


def call_reversed_quantized(embedding: keras.layers.ReversibleEmbedding, inputs: Any) -> Any:
    """Returns `embedding(inputs, reverse=True)` of a quantized embedding, with a gradient.

    Keras rounds the inputs to integers, through which no gradient passes. As in its other quantized
    layers, the gradient is that of the product with the table.
    """
    soft_cap = embedding.logit_soft_cap
    no_cap = {} if soft_cap is None else {"logit_soft_cap": None}

    is_of_keras = type(embedding) is keras.layers.ReversibleEmbedding and rounds_rows_to_int8(
        embedding
    )

    def compute(rows: Any, kernel: Any, scale: Any, *_: Any) -> Any:
        if is_of_keras:
            kernel = ops.transpose(kernel) if embedding.tie_weights else kernel
            scale = ops.reshape(ops.cast(scale, rows.dtype), (-1,))
            flat = ops.reshape(rows, (-1, rows.shape[-1]))
            logits = _multiply(flat, embedding.inputs_quantizer, kernel, scale)
            return ops.reshape(logits, (*ops.shape(rows)[:-1], kernel.shape[-1]))
        with temporary_attributes(embedding, **no_cap):
            return embedding(rows, reverse=True)

    def differentiate(upstream: Any, _: Any, *tensors: Any) -> list[Any]:
        dtype = keras.backend.standardize_dtype(upstream.dtype)
        kernel = read_reverse_kernel(embedding, dtype, *tensors)
        return [ops.matmul(upstream, ops.transpose(kernel))]

    def run(rows: Any, *tensors: Any) -> Any:
        return backend.current().compute.apply_with_gradient(
            compute, differentiate, [rows], tensors
        )

    tensors = [ops.convert_to_tensor(variable) for variable in reverse_variables(embedding)]
    logits = call_opaque(run, ops.cast(inputs, embedding.compute_dtype), *tensors)
    return logits if soft_cap is None else ops.tanh(logits / soft_cap) * soft_cap
