"""The checks that the sizes of every layer go through."""

from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError

_RANK = 3


def check_size(name: str, value: Any, *, default: int | None = None) -> int:
    """Returns a size, or says what was received in its place.

    Args:
        name: string. The argument, as the error names it.
        value: What was given.
        default: integer. What `None` stands for. Defaults to `None`: `None` is refused.

    Raises:
        InvalidInputError: It is not an integer of at least 1.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"`{name}` must be a positive integer, received {value!r}.")
    return value


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
