"""Triton's classification extension: an output's largest values as text, in place of the output."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.tensor_bytes import string_array

_MIN_RANK = 2

PARAMETER = "classification"
"""The parameter of a wanted output that says how many of its largest values are asked for."""


def read_count(value: Any, where: str) -> int:
    """Returns how many classes a parameter asks for; 0 for the output itself.

    Args:
        value: integer, or `None` where there is no parameter.
        where: string. What an error names, as in `"Output 'y'"`.

    Raises:
        InvalidInputError: It is no integer of at least 1.
    """
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(
            f"{where}: received {PARAMETER}={value!r:.30}; expected an integer of at least 1."
        )
    return value


def largest(array: Array, count: int, where: str) -> Array:
    """Returns the `count` largest values of each row, as `"value:index"`, the largest first.

    Args:
        array: array of numbers, rows first.
        count: integer. As many as there are, where there are fewer.
        where: string. What an error names.

    Returns:
        An array of `bytes`, of shape `(rows, count)`.

    Raises:
        InvalidInputError: The output has no rows of numbers.

    Example:

    >>> largest(np.array([[0.25, 0.5, 0.125]]), 2, "Output 'y'").tolist()
    [[b'0.500000:1', b'0.250000:0']]
    """
    if array.dtype == object or array.ndim < _MIN_RANK:
        raise InvalidInputError(
            f"{where}: classes are of an output with rows of numbers; it has {array.dtype} "
            f"{array.shape}."
        )
    rows = array.reshape(len(array), int(np.prod(array.shape[1:])))
    if rows.dtype.kind not in "iub":
        rows = rows.astype(np.float64)
    # Of equals the first comes first: the others are turned round twice.
    order = np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    indices = rows.shape[1] - 1 - order[:, :count]
    values = np.take_along_axis(rows, indices, axis=1)
    form = "{:f}:{}" if rows.dtype.kind == "f" else "{:d}:{}"
    texts = [
        form.format(value, index).encode()
        for value, index in zip(values.ravel().tolist(), indices.ravel().tolist(), strict=True)
    ]
    return string_array(texts).reshape(indices.shape)
