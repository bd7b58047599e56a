"""A large array in pieces along its first axis, so that no second copy of it has to be made."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array

PIECE_BYTES = 2**23
_ALIGNMENT = 64  # Bytes. What XLA and TensorFlow ask of memory that they go on using.


def cut_pieces(shape: tuple[int, ...], item_bytes: int) -> Iterator[Any]:
    """Yields the indices that read an array piece by piece.

    Args:
        shape: tuple of integers. That of the array.
        item_bytes: integer. The bytes of a number.
    """
    if not shape:
        yield ()
        return
    row_bytes = max(math.prod(shape[1:]) * item_bytes, 1)
    rows = max(PIECE_BYTES // row_bytes, 1)
    for begin in range(0, shape[0], rows):
        yield slice(begin, min(begin + rows, shape[0]))


def read_pieces(source: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns a copy of an array, or of what is read like one by its indices, in aligned memory.

    Args:
        source: What is read.
        shape: tuple of integers. That of the array.
        dtype: `numpy.dtype` of the copy.
    """
    values = allocate_aligned(shape, dtype)
    for index in cut_pieces(shape, dtype.itemsize):
        values[index] = source[index]
    return values


def allocate_aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Returns an array of zeros in aligned memory, none of which is touched yet.

    Args:
        shape: tuple of integers.
        dtype: `numpy.dtype`.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + _ALIGNMENT, "u1")
    begin = -memory.ctypes.data % _ALIGNMENT
    values: Array = memory[begin : begin + num_bytes].view(dtype).reshape(shape)
    return values
