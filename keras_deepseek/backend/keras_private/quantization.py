"""Quantized layers: the state that Keras keeps of them, and the kernels of its own layers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops
from keras.src.quantizers.utils import should_quantize_layer

from keras_deepseek.backend.keras_private.layers import flatten_layers


def layers_to_quantize(model: keras.Model, filters: Any) -> list[keras.Layer]:
    """Returns the layers that `keras.Model.quantize` quantizes if it gets these `filters`.

    Keras warns of each layer that can't be quantized; these are left out.
    """
    return [
        layer
        for layer in flatten_layers(model)
        if type(layer).quantize is not keras.Layer.quantize
        and should_quantize_layer(layer, filters)
    ]


def forget_parameters(model: keras.Model) -> None:
    """Drops the lists of tensors that the layers of a model keep on PyTorch.

    They would keep a replaced kernel alive. Keras makes them again when they are asked for.
    """
    for layer in flatten_layers(model):
        if hasattr(layer, "_torch_params"):
            del layer._torch_params


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Context manager that keeps the garbage collector from all objects that exist.

    Keras collects whenever an attribute of a layer is deleted, which takes .3 s in each layer.
    """
    is_frozen = gc.get_freeze_count() > 0
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()


@contextmanager
def new_weights(layer: keras.Layer) -> Iterator[None]:
    """Context manager in which a built layer may add weights."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def mark_quantized(layer: keras.Layer, mode: str, block_size: int | None = None) -> None:
    """Sets the dtype policy of a layer whose weights are now quantized.

    `block_size` is that of int4; `None` stands for one scale for each column.
    """
    layer._is_quantized = True  # Otherwise the policy would have Keras quantize it again.
    if layer.quantization_mode is not None:
        return
    if mode == "int4" and hasattr(keras.dtype_policies, "Int4DTypePolicy"):
        mode = f"int4/{-1 if block_size is None else block_size}"
    layer.dtype_policy = keras.dtype_policies.get(f"{mode}_from_{layer.dtype_policy.name}")


def read_block_size(config: Any) -> int | None:
    """Returns the number of rows that share a scale in int4; `None` if all rows of a column do.

    In Keras 3.13 they always do.
    """
    block_size = getattr(config, "block_size", None)
    return None if block_size == -1 else block_size


def can_read_kernel(layer: keras.layers.EinsumDense) -> bool:
    """Returns True if `read_kernel` knows how a layer's kernel is quantized."""
    if layer.quantization_mode == "int4":
        return hasattr(layer, "_int4_block_size")  # Keras 3.13 packs other columns together.
    return layer.quantization_mode in (None, "int8")


def read_kernel(layer: keras.layers.EinsumDense, dtype: str) -> Any:
    """Returns the kernel of an `EinsumDense`, its LoRA included, as floating-point numbers."""
    mode = layer.quantization_mode
    if mode is None:
        return ops.cast(layer.kernel, dtype)
    scale = ops.convert_to_tensor(layer.kernel_scale)
    if mode == "int8":
        scale = layer._adjust_scale_for_dequant(scale)
        kernel = ops.cast(layer._kernel, dtype) / ops.cast(scale, dtype)
    else:
        columns = layer._int4_unpacked_column_size
        values = keras.quantizers.unpack_int4(ops.convert_to_tensor(layer._kernel), columns, -1)
        is_grouped = layer._int4_block_size is not None
        groups = [layer.kernel_zero, layer.g_idx] if is_grouped else []
        kernel = ops.reshape(
            _dequantize(values, dtype, scale, *groups), layer.original_kernel_shape
        )
    if not layer.lora_enabled:
        return kernel
    product = ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
    return kernel + ops.cast(product * (layer.lora_alpha / layer.lora_rank), dtype)


def quantizes_inputs(layer: keras.Layer) -> bool:
    """Returns True if a quantized layer rounds its inputs, too."""
    is_quantized = getattr(layer, "quantization_mode", None) is not None
    return is_quantized and getattr(layer, "inputs_quantizer", None) is not None


def rounds_rows_to_int8(layer: keras.Layer) -> bool:
    """Returns True if a layer rounds its inputs to int8, by the largest of each row."""
    quantizer: Any = getattr(layer, "inputs_quantizer", None)
    if type(quantizer) is not keras.quantizers.AbsMaxQuantizer or quantizer.output_dtype != "int8":
        return False
    return layer.quantization_mode == "int8" and layer._remat_mode is None


def count_summed_axes(layer: keras.Layer) -> int | None:
    """Returns the number of last axes of its inputs that an int8 layer multiplies and sums over.

    It is `None` if the layer does anything else than a `Dense` or an `EinsumDense` of that kind.
    """
    if not rounds_rows_to_int8(layer) or layer.activity_regularizer is not None:
        return None
    if type(layer) is keras.layers.Dense:
        return 1
    if type(layer) is not keras.layers.EinsumDense or "." in layer.equation:
        return None
    operands, outputs = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    number = len(set(inputs) & set(kernel))
    is_product = 0 < number < len(inputs) and inputs[-number:] == kernel[:number]
    return number if is_product and outputs == inputs[:-number] + kernel[number:] else None


def read_int8_kernel(layer: keras.Layer) -> tuple[Any, Any]:
    """Returns the int8 kernel and its scale, of a layer that has `count_summed_axes`."""
    return ops.convert_to_tensor(layer._kernel), ops.convert_to_tensor(layer.kernel_scale)


def reverse_variables(embedding: keras.layers.ReversibleEmbedding) -> list[keras.Variable]:
    """Returns the variables by which a quantized `ReversibleEmbedding` computes logits.

    They are the kernel and its scale, and in int4 with blocks a zero point and the groups of rows.
    """
    name = "embeddings" if embedding.tie_weights else "reverse_embeddings"
    kernel = embedding._embeddings if embedding.tie_weights else embedding.reverse_embeddings
    variables = [kernel, getattr(embedding, f"{name}_scale")]
    if (getattr(embedding, "_int4_block_size", None) or -1) > 0:
        variables += [getattr(embedding, f"{name}_zero"), embedding.g_idx]
    return variables


def read_reverse_kernel(
    embedding: keras.layers.ReversibleEmbedding, dtype: str, stored: Any, *scales: Any
) -> Any:
    """Returns the kernel `(dim, vocabulary_size)` of logits as floating-point numbers.

    `stored` and `scales` are the tensors of `reverse_variables`.
    """
    if embedding.tie_weights:
        scales = tuple(scale if len(scale.shape) == 1 else ops.transpose(scale) for scale in scales)
        stored = ops.transpose(stored)
    if embedding.quantization_mode == "int4":
        stored = keras.quantizers.unpack_int4(stored, embedding.output_dim, axis=0)
    return _dequantize(stored, dtype, *scales)


def _dequantize(
    values: Any, dtype: str, scale: Any, zero: Any = None, row_groups: Any = None
) -> Any:
    """Divides by a scale of each column; or subtracts the zero of a group of rows, and multiplies.

    `row_groups` holds the group of each row.
    """
    values = ops.cast(values, dtype)
    if zero is None:
        return values / ops.cast(scale, dtype)
    row_groups = ops.cast(row_groups, "int32")
    scale, zero = (ops.cast(ops.take(x, row_groups, axis=0), dtype) for x in (scale, zero))
    return (values - zero) * scale
