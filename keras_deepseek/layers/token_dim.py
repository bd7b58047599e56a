"""The size of each token, which every layer of sequences is built by."""

import keras

from keras_deepseek.artifacts.errors import InvalidInputError

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
