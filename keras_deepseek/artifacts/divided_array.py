"""Arrays that no process has whole: the pieces that one process has, and those in files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import CheckpointError, InvalidInputError

Box = tuple[tuple[int, int], ...]
"""The first index of a piece and its end, on each axis. A single range of an array with several
axes counts its numbers one after another."""


@dataclass(frozen=True)
class ArrayPieces:
    """The pieces of an array that this process has. Together, the processes have each number once.

    Args:
        shape: The shape of the whole array. That of a process without a piece does not matter.
        dtype: The name of its dtype.
        pieces: Each piece with its box.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: Sequence[tuple[Box, Array]]


def whole_box(shape: Sequence[int]) -> Box:
    """Returns the box of a whole array."""
    return tuple((0, size) for size in shape)


class StoredArray:
    """An array whose pieces are in files. An index, or `flat`, reads those that it needs.

    Args:
        shape: The shape of the array.
        dtype: Its dtype.
        pieces: The boxes, each with a function that reads the piece.
        name: What holds the array, for errors.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        pieces: Sequence[tuple[Box, Callable[[], Array]]],
        name: str,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._pieces = pieces
        self._name = name
        self._is_flat = any(len(box) != len(shape) for box, _ in pieces)

    def __getitem__(self, index: Any) -> Array:
        """Reads a part of the array. The index is a slice without a step, or a tuple of such."""
        slices = index if isinstance(index, tuple) else (index,)
        slices += (slice(None),) * (len(self.shape) - len(slices))
        if not all(isinstance(cut, slice) and cut.step in (None, 1) for cut in slices):
            raise InvalidInputError(
                f"An array of pieces in files is read by slices without a step; received {index}. "
                "Read the whole of it by numpy.asarray(array), and index that."
            )
        bounds = [cut.indices(size) for cut, size in zip(slices, self.shape, strict=True)]
        ranges = [(start, max(start, stop)) for start, stop, _ in bounds]
        if not self._is_flat:
            return self._read(ranges)
        whole: Array = np.asarray(self)[slices]
        return whole

    def flat(self, start: int, stop: int) -> Array:
        """Reads the numbers from `start` to `stop` of the flat array."""
        if self._is_flat or len(self.shape) == 1:
            return self._read([(start, stop)])
        whole = np.asarray(self) if start < stop else np.empty(0, self.dtype)
        return whole.reshape(-1)[start:stop]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if self._is_flat:
            values = self._read([(0, math.prod(self.shape))]).reshape(self.shape)
        else:
            values = self._read(whole_box(self.shape))
        return values.astype(dtype or self.dtype, copy=False)

    def _read(self, ranges: Sequence[tuple[int, int]]) -> Array:
        """Reads a box, piece by piece."""
        values = np.empty([stop - start for start, stop in ranges], self.dtype)
        num_read = 0
        for box, read in self._pieces:
            shared = [
                (max(start, first), min(stop, end))
                for (start, stop), (first, end) in zip(ranges, box, strict=True)
            ]
            if all(start < stop for start, stop in shared):
                values[_slices(shared, ranges)] = read()[_slices(shared, box)]
                num_read += math.prod(stop - start for start, stop in shared)
        if num_read != values.size:
            raise CheckpointError(
                f"{self._name} has {num_read} of the {values.size} numbers {list(ranges)} of an "
                f"array of shape {self.shape}."
            )
        return values


def _slices(box: Sequence[tuple[int, int]], outer: Sequence[tuple[int, int]]) -> tuple[Any, ...]:
    """Returns the index of a box in the array of a larger one."""
    return tuple(
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(box, outer, strict=True)
    )
