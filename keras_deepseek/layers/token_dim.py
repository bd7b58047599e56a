"""What every layer of hidden states is given: vectors of one known size."""

import keras

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape

_RANK = 3


def read_dim(layer: keras.Layer, input_shape: Shape) -> int:
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


def check_shape(name: str, shape: Shape | None) -> int:
    """Returns the size of each token, or raises an error where a shape is not that of a sequence.

    Args:
        name: string. The layer, as the error names it.
        shape: tuple, or `None` where the inputs have none.

    Raises:
        InvalidInputError: It is not `(batch_size, length, dim)`, or the dim is not known.
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
    """Returns the size of the vectors, and sets the `input_spec` of the layer by it.

    Args:
        layer: `keras.Layer`.
        input_shape: tuple. The shape of its inputs.
        min_rank: integer. The fewest axes. Defaults to `2`.
        axes: string. The axes, as the error names them. Defaults to `"(batch_size, ..., dim)"`.

    Raises:
        InvalidInputError: There are fewer axes, or the last has an unknown size.
    """
    shape = input_shape if len(input_shape) >= min_rank else None
    dim = _read_last(layer.name, shape, axes, input_shape)
    layer.input_spec = keras.InputSpec(min_ndim=min_rank, axes={-1: dim})
    return dim


def _read_last(name: str, shape: Shape | None, axes: str, received: Shape | None) -> int:
    """Returns the last size of a shape that is known to fit, or says what was received."""
    dim = None if shape is None else shape[-1]
    if dim is None:
        raise InvalidInputError(
            f"{name!r} needs inputs of shape {axes} with a known dim, received "
            f"{None if received is None else tuple(received)}."
        )
    return dim
