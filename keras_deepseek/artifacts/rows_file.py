"""Reader of NumPy files with rows of a model's inputs, for calibration or verification."""

import itertools
import os
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_file_exists
from keras_deepseek.errors import InvalidInputError

_EXPECTED = "a file that numpy.savez or numpy.save wrote"
_FIRST_SIZES, _LARGEST = (1, 3, 4), 32
"""The rows of the first batches, and the largest number of rows."""


def load_rows(path: str | os.PathLike[str]) -> Array | dict[str, Array]:
    """Reads a `.npz` file as arrays by name; a `.npy` file, or one unnamed array, as an array."""
    check_file_exists(path, _EXPECTED)
    try:
        with Path(path).open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded.items())
        named = {"": arrays} if isinstance(arrays, np.ndarray) else arrays
        if not all(isinstance(array, np.ndarray) for array in named.values()):
            raise ValueError("it is an archive of something else")  # noqa: TRY301
    except (OSError, ValueError, BadZipFile, AttributeError, EOFError) as error:
        raise InvalidInputError(
            f"No arrays can be read from {os.fspath(path)!r}: {error}. Expected {_EXPECTED}."
        ) from error
    counts = {name: len(array) if array.ndim else None for name, array in named.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        row_counts = ", ".join(f"{name or 'its array'}: {count}" for name, count in counts.items())
        raise InvalidInputError(
            f"All arrays of {os.fspath(path)!r} must have the same number of rows, at least one; "
            f"the rows are {row_counts or 'none'}."
        )
    return named["arr_0"] if list(named) == ["arr_0"] else arrays


def cut_batches(arrays: dict[str, Array]) -> list[dict[str, Array]]:
    """Cuts arrays with the same number of rows into batches of several sizes."""
    num_rows = len(next(iter(arrays.values())))
    sizes = itertools.chain(_FIRST_SIZES, itertools.repeat(_LARGEST))
    starts = [0]
    while starts[-1] < num_rows:
        starts.append(starts[-1] + next(sizes))
    return [
        {name: array[start:end] for name, array in arrays.items()}
        for start, end in itertools.pairwise(starts)
    ]
