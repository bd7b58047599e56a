"""Projections from token features to attention heads and back.

They are those of `keras.layers.MultiHeadAttention`: `EinsumDense` layers with fixed names.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.quantized_layers import call_quantized


def projection_arguments(layer: Any, name: str) -> dict[str, Any]:
    """Returns the constructor arguments that all projections inside an attention layer share.

    Projections copy `trainable` here because Keras passes on only later changes of it.
    """
    return {
        "kernel_initializer": clone_initializer(layer.kernel_initializer),
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
        "name": name,
    }


def make_projection(
    layer: Any,
    name: str,
    sizes: Shape,
    *,
    equation: str = "btd,dhk->bthk",
    bias_axes: str = "hk",
) -> keras.layers.EinsumDense:
    """Makes an `EinsumDense` that projects each token, by default to attention heads.

    `sizes` is the output shape of one token. `bias_axes` matter only if the layer has a bias.
    """
    projection = keras.layers.EinsumDense(
        equation,
        output_shape=(None, *sizes),
        bias_axes=bias_axes if layer.use_bias else None,
        bias_initializer=clone_initializer(layer.bias_initializer),
        **projection_arguments(layer, name),
    )
    projection.supports_masking = True  # Avoids Keras's warning; `call` applies the mask.
    return projection


def project_tokens(projection: keras.layers.EinsumDense, inputs: Any) -> Any:
    """Returns `projection(inputs)` with the length of the inputs.

    For a `keras.KerasTensor`, `EinsumDense` returns an unknown length even if that of the inputs is
    known.
    """
    outputs, (batch_size, length) = call_quantized(projection, inputs), inputs.shape[:2]
    if outputs.shape[1] is not None or length is None:
        return outputs
    batch_size = -1 if batch_size is None else batch_size
    return ops.reshape(outputs, (batch_size, length, *outputs.shape[2:]))
