"""Functions that return a shape's last axis, the number of features of a token."""

import keras

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape

_RANK = 3


def read_dim(layer: keras.Layer, input_shape: Shape) -> int:
    """Returns the number of features of a token, from the shape `(batch_size, length, dim)`.

    It sets the layer's `input_spec`.
    """
    dim = check_shape(layer.name, input_shape)
    layer.input_spec = keras.InputSpec(ndim=_RANK, axes={-1: dim})
    return dim


def check_shape(name: str, shape: Shape | None) -> int:
    """Returns the last axis of a sequence's shape, or raises an error for other shapes.

    `name` is that of the layer, for the error.
    """
    is_sequence = shape is not None and len(shape) == _RANK
    return _read_last(name, shape if is_sequence else None, "(batch_size, length, dim)", shape)


def read_last_dim(
    layer: keras.Layer,
    input_shape: Shape,
    *,
    min_rank: int = 2,
    axes: str = "(batch_size, ..., dim)",
) -> int:
    """Returns the size of an input's last axis, and sets the layer's `input_spec`.

    `axes` describes the expected axes in the error.
    """
    shape = input_shape if len(input_shape) >= min_rank else None
    dim = _read_last(layer.name, shape, axes, input_shape)
    layer.input_spec = keras.InputSpec(min_ndim=min_rank, axes={-1: dim})
    return dim


def _read_last(name: str, shape: Shape | None, axes: str, received: Shape | None) -> int:
    """Returns the last size of a valid shape; for `None`, raises an error that shows `received`."""
    dim = None if shape is None else shape[-1]
    if dim is None:
        raise InvalidInputError(
            f"{name!r} needs inputs of shape {axes} with a known dim, received "
            f"{None if received is None else tuple(received)}."
        )
    return dim
