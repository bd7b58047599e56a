"""The projections between a sequence and its heads, as the attention layers of this package make.

They are those of `keras.layers.MultiHeadAttention`: each an `EinsumDense` with a name of its own.
"""

from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.layers.initializers import clone_initializer

_RANK = 3


def read_dim(layer: keras.Layer, input_shape: tuple[int | None, ...]) -> int:
    """Returns the size of each token of a sequence, and sets the `input_spec` of the layer by it.

    Args:
        layer: `keras.Layer`.
        input_shape: tuple. The shape of its inputs.

    Raises:
        InvalidInputError: It is not `(batch_size, length, dim)`, or the dim is not known.
    """
    if len(input_shape) != _RANK or input_shape[-1] is None:
        raise InvalidInputError(
            f"{layer.name!r} needs inputs of shape (batch_size, length, dim) with a known dim, "
            f"received {tuple(input_shape)}."
        )
    layer.input_spec = keras.InputSpec(ndim=_RANK, axes={-1: input_shape[-1]})
    return input_shape[-1]


def make_projection(
    layer: Any,
    name: str,
    sizes: tuple[int | None, ...],
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
        kernel_initializer=clone_initializer(layer.kernel_initializer),
        bias_initializer=clone_initializer(layer.bias_initializer),
        dtype=layer.dtype_policy,
        name=name,
    )
    projection.supports_masking = True  # Else Keras warns of the mask, which `call` applies.
    return projection
