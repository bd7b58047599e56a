"""A float8 or float4 matrix with one scale for each block, as in DeepSeek's releases."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.checkpoints.float4_pairs import Float4Pairs


class ScaledBlocks:
    """A matrix of float8 or float4 values times block scales, converted to float32 on indexing.

    It has the parts of the array interface that checkpoint entries use: `shape`, `dtype`, `T`,
    indexing and `reshape`. NumPy functions convert the whole matrix. Values of a float8 dtype are
    `(rows, columns)`, and scales `(ceil(rows / block_rows), ceil(columns / block_columns))`.
    """

    dtype = np.dtype("float32")

    def __init__(
        self, values: Array | Float4Pairs, scales: Array, block_shape: tuple[int, int]
    ) -> None:
        self._values = values
        self._scales = scales
        self._block_shape = block_shape
        self._is_transposed = False
        self.shape = values.shape

    @property
    def T(self) -> "ScaledBlocks":  # noqa: N802 - NumPy's name.
        """The transposed matrix."""
        turned = ScaledBlocks(self._values, self._scales, self._block_shape)
        turned._is_transposed = not self._is_transposed
        turned.shape = self.shape[::-1]
        return turned

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Array:
        first, second, *_ = (*(index if isinstance(index, tuple) else (index,)), *_ALL)
        # Computed in the order of the file, where neighbours share a scale.
        return self._read(second, first).T if self._is_transposed else self._read(first, second)

    def reshape(self, *shape: Any) -> Array:
        """Returns the whole matrix as an array of another shape."""
        return self[:].reshape(*shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, rows: Any, columns: Any) -> Array:
        num_rows, num_columns = self._values.shape
        block_rows, block_columns = self._block_shape
        values: Array = self._values[rows, columns]
        if not isinstance(self._values, Float4Pairs):
            values = _to_float32(values)
        scales = self._scales[(np.arange(num_rows) // block_rows)[rows]].astype(self.dtype)
        if columns == _ALL[1] and num_columns % block_columns == 0:  # Several times as fast.
            blocks = values.reshape(*values.shape[:-1], -1, block_columns)
            blocks *= scales[..., None]
            return values
        values *= scales[..., (np.arange(num_columns) // block_columns)[columns]]
        return values


_ALL = (slice(None), slice(None))


def _to_float32(values: Array) -> Array:
    """Converts float8 or float4 codes to float32 by a lookup table.

    It is three times as fast as a cast.
    """
    values = np.asarray(values)
    table = np.arange(256, dtype="u1").view(values.dtype).astype("float32")
    numbers: Array = table[values.view("u1")]
    return numbers


def count_blocks(shape: tuple[int, ...], block_shape: tuple[int, int]) -> tuple[int, ...]:
    """Returns the shape of the array of scales of a matrix, one scale for each block."""
    return tuple(-(-size // block) for size, block in zip(shape, block_shape, strict=True))
