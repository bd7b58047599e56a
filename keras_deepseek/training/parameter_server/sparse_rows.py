"""Compression of embedding gradients: only the rows that a batch has touched are sent."""

from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array

_LEAST_ROWS = 256
"""Tables with fewer rows are sent whole: to look for the rows would take longer."""


@dataclass(frozen=True)
class SparseRows:
    """A sparse array of `num_rows` rows, of which those without an index are zero."""

    indices: Array
    rows: Array
    num_rows: int


def pack_rows(gradient: Array) -> Array | SparseRows:
    """Returns only the rows that are not zero if they are at most half, else the whole array."""
    if gradient.ndim < 2 or len(gradient) < _LEAST_ROWS:  # noqa: PLR2004 - a table has two axes.
        return gradient
    indices = np.flatnonzero(gradient.any(axis=tuple(range(1, gradient.ndim))))
    if len(indices) * 2 > len(gradient):
        return gradient
    return SparseRows(indices.astype("int32"), gradient[indices], len(gradient))


def unpack_rows(packed: Array | SparseRows) -> Array:
    """Restores the whole array from the result of `pack_rows`, bit by bit."""
    if not isinstance(packed, SparseRows):
        return packed
    whole = np.zeros((packed.num_rows, *packed.rows.shape[1:]), packed.rows.dtype)
    whole[packed.indices] = packed.rows
    return whole
