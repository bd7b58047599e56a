"""The fp8 form of the DeepSeek releases: a matrix in float8, and a scale for each of its blocks."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array


class ScaledBlocks:
    """A matrix `values * scale of the block`, in float32, computed as far as it is asked for.

    It has of an array what an entry of experts uses: `shape`, `dtype`, `T`, indices and
    `reshape`; NumPy's functions take it as the whole matrix.

    Args:
        values: NumPy array of shape `(rows, columns)`, of a float8 dtype.
        scales: NumPy array of shape `(ceil(rows / block_rows), ceil(columns / block_columns))`.
        block_shape: tuple of two integers, `(block_rows, block_columns)`.

    Example:

    >>> import numpy as np
    >>> matrix = ScaledBlocks(np.ones((3, 4)), np.array([[2.0, 3.0]]), (128, 2))
    >>> matrix[0].tolist(), matrix.T.shape
    ([2.0, 2.0, 3.0, 3.0], (4, 3))
    """

    dtype = np.dtype("float32")

    def __init__(self, values: Array, scales: Array, block_shape: tuple[int, int]) -> None:
        self._values = values
        self._scales = scales
        self._block_shape = block_shape
        self.shape = values.shape

    @property
    def T(self) -> "ScaledBlocks":  # noqa: N802 - NumPy's name.
        """The transposed matrix."""
        return ScaledBlocks(self._values.T, self._scales.T, self._block_shape[::-1])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Array:
        first, second, *_ = (*(index if isinstance(index, tuple) else (index,)), *_ALL)
        values: Array = self._values[first, second].astype(self.dtype)
        rows = (np.arange(self.shape[0]) // self._block_shape[0])[first]
        columns = (np.arange(self.shape[1]) // self._block_shape[1])[second]
        values *= self._scales[rows][..., columns].astype(self.dtype)
        return values

    def reshape(self, *shape: Any) -> Array:
        """Returns the whole matrix as an array of another shape.

        Args:
            *shape: As for NumPy.
        """
        return self[:].reshape(*shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self.dtype, copy=False)


_ALL = (slice(None), slice(None))


def count_blocks(shape: tuple[int, ...], block_shape: tuple[int, int]) -> tuple[int, ...]:
    """Returns the shape of the scales of a matrix.

    Args:
        shape: tuple of two integers.
        block_shape: tuple of two integers.
    """
    return tuple(-(-size // block) for size, block in zip(shape, block_shape, strict=True))
