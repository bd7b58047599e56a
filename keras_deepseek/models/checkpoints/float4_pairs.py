"""DeepSeek-V4's fp4 format, which packs two four-bit numbers into each byte."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array

FLOAT4_BLOCK_SHAPE = (1, 32)
"""The shape of the blocks that share a scale: 32 inputs of one output."""

_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = np.array([*_SIZES, *(-size for size in _SIZES)], "<f4")
_ALL_BYTES = np.arange(256)
# A lookup returns both numbers of a byte as one item of eight bytes. The low bits come first.
_PAIRS = np.stack([_NUMBERS[_ALL_BYTES & 15], _NUMBERS[_ALL_BYTES >> 4]], axis=-1).view("u8")[:, 0]


class Float4Pairs:
    """A matrix of float4 numbers (e2m1) that is converted to float32 where it is indexed.

    The codes are `(rows, columns / 2)`, with a dtype of one byte. The low four bits hold the number
    of the even column.
    """

    def __init__(self, codes: Array) -> None:
        self._codes = codes.view("u1")
        self.shape = (codes.shape[0], 2 * codes.shape[1])

    def __getitem__(self, index: tuple[Any, Any]) -> Array:
        rows, columns = index
        chosen = np.arange(self.shape[1])[columns]
        if not chosen.size:
            return np.empty((*self._codes[rows, :1].shape[:-1], *chosen.shape), "f4")
        begin, end = int(chosen.min()) // 2, int(chosen.max()) // 2 + 1
        numbers: Array = _PAIRS[self._codes[rows, begin:end]].view("f4")
        is_all = numbers.shape[-1:] == chosen.shape and chosen[0] <= chosen[-1]
        return numbers if is_all else numbers[..., chosen - 2 * begin]
