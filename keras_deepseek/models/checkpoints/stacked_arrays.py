"""Arrays of equal shape that act as one stacked array, without copying them.

The kernels of all experts are one variable here, and one tensor each in a checkpoint. If that
variable is sharded by expert, a process reads only its own experts.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array


class StackedArrays:
    """A stack of arrays, as by `np.stack`, that is copied only where it is indexed.

    The arrays have one shape and dtype, such as parts of a memory-mapped file.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = list(arrays)
        self.shape = (len(self.arrays), *self.arrays[0].shape)
        self.dtype = self.arrays[0].dtype

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: Any) -> Array:
        first, *inner_index = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice):
            chosen = [array[tuple(inner_index)] for array in self.arrays[first]]
            return np.stack(chosen)
        array: Array = self.arrays[operator.index(first)][tuple(inner_index)]
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.stack(self.arrays).astype(dtype or self.dtype, copy=False)
