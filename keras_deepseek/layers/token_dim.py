"""What every layer of sequences is given: tokens that are vectors of one known size."""

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
    dim = check_shape(layer.name, input_shape)
    layer.input_spec = keras.InputSpec(ndim=_RANK, axes={-1: dim})
    return dim


def check_shape(name: str, shape: tuple[int | None, ...] | None) -> int:
    """Returns the size of each token, or raises an error where a shape is not that of a sequence.

    Args:
        name: string. The layer, as the error names it.
        shape: tuple, or `None` where the inputs have none.

    Raises:
        InvalidInputError: It is not `(batch_size, length, dim)`, or the dim is not known.
    """
    if shape is None or len(shape) != _RANK or shape[-1] is None:
        received = None if shape is None else tuple(shape)
        raise InvalidInputError(
            f"{name!r} needs inputs of shape (batch_size, length, dim) with a known dim, "
            f"received {received}."
        )
    return shape[-1]
