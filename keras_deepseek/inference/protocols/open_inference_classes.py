"""Triton's classification extension: the largest values of an output, as text."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.protocols.tensor_bytes import string_array

_MIN_RANK = 2

PARAMETER = "classification"
"""The parameter of a requested output with the number of its largest values to return."""


def read_count(value: Any, where: str) -> int:
    """Returns the number of classes that a request parameter asks for; 0 means the raw output."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(
            f"{where}: received {PARAMETER}={value!r:.30}; expected an integer of at least 1."
        )
    return value


def largest(array: Array, count: int, where: str) -> Array:
    """Returns the `count` largest values of each row, as `b"value:index"`, the largest first.

    If a row has fewer values, all of them are returned.
    """
    if array.dtype == object or array.ndim < _MIN_RANK:
        raise InvalidInputError(
            f"{where}: classification needs an output with rows of numbers; this one is "
            f"{array.dtype} of shape {array.shape}."
        )
    rows = array.reshape(len(array), int(np.prod(array.shape[1:])))
    if rows.dtype.kind not in "iub":
        rows = rows.astype(np.float64)
    # Equal values keep their order: the rows are reversed before and after the stable sort.
    order = np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    indices = rows.shape[1] - 1 - order[:, :count]
    values = np.take_along_axis(rows, indices, axis=1)
    form = "{:f}:{}" if rows.dtype.kind == "f" else "{:d}:{}"
    texts = [
        form.format(value, index).encode()
        for value, index in zip(values.ravel().tolist(), indices.ravel().tolist(), strict=True)
    ]
    return string_array(texts).reshape(indices.shape)
