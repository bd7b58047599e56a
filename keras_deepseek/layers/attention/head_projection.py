"""The projections between a sequence and its heads, as the attention layers of this package make.

They are those of `keras.layers.MultiHeadAttention`: each an `EinsumDense` with a name of its own.
"""

from typing import Any

import keras

from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import Shape


def projection_arguments(layer: Any, name: str) -> dict[str, Any]:
    """Returns the arguments of Keras that all projections inside of a layer have in common.

    A layer that was frozen before has frozen ones: Keras hands on what is set later alone.

    Args:
        layer: `keras.Layer` with a `kernel_initializer`.
        name: string. The name of the projection.
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
    """Returns a projection of each token.

    Args:
        layer: `keras.Layer` with `use_bias`, `kernel_initializer` and `bias_initializer`.
        name: string. The name of the projection.
        sizes: tuple. The shape of what becomes of a token.
        equation: string. That of `EinsumDense`. Defaults to `"btd,dhk->bthk"`, to heads.
        bias_axes: string. The axes of a bias, if the layer has one. Defaults to `"hk"`.
    """
    projection = keras.layers.EinsumDense(
        equation,
        output_shape=(None, *sizes),
        bias_axes=bias_axes if layer.use_bias else None,
        bias_initializer=clone_initializer(layer.bias_initializer),
        **projection_arguments(layer, name),
    )
    projection.supports_masking = True  # Else Keras warns of the mask, which `call` applies.
    return projection
