"""Gradients of embeddings on their way: the rows that a batch has touched alone."""

from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array

_LEAST_ROWS = 256
"""Tables of fewer rows are sent as they are: looking for the rows would take longer."""


@dataclass(frozen=True)
class SparseRows:
    """An array of which all rows but some are zero.

    Args:
        indices: NumPy array. Which rows they are.
        rows: NumPy array. The rows.
        num_rows: integer. How many rows the array has.
    """

    indices: Array
    rows: Array
    num_rows: int


def pack_rows(gradient: Array) -> Array | SparseRows:
    """Returns an array, or the rows of it that are not zero where they are less than half of it.

    Args:
        gradient: NumPy array.
    """
    if gradient.ndim < 2 or len(gradient) < _LEAST_ROWS:  # noqa: PLR2004 - a table has two axes.
        return gradient
    indices = np.flatnonzero(gradient.any(axis=tuple(range(1, gradient.ndim))))
    if len(indices) * 2 > len(gradient):
        return gradient
    return SparseRows(indices.astype("int32"), gradient[indices], len(gradient))


def unpack_rows(packed: Array | SparseRows) -> Array:
    """Returns the array that `pack_rows` was given, to the last bit.

    Args:
        packed: What it has returned.
    """
    if not isinstance(packed, SparseRows):
        return packed
    whole = np.zeros((packed.num_rows, *packed.rows.shape[1:]), packed.rows.dtype)
    whole[packed.indices] = packed.rows
    return whole
