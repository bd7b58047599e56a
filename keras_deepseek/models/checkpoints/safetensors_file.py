"""Reading of one safetensors file: its header is checked, its tensors are mapped into memory.

The format: eight bytes with the length of the header, the header (JSON with the dtype, the shape
and the byte range of each tensor), and the bytes of all tensors without gaps.

The `safetensors` package (0.8) is not used. It does not return float8 as NumPy arrays, does not say
where a tensor begins in the file, and copies: a tensor of 128 MB took 256 MB at the peak, and
128 MB here. A memory map is read only where its numbers are used, as sharded variables and stacked
experts need, and its pages can be released.
"""

import json
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from keras_deepseek.artifacts.lfs_pointer import check_not_pointer
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""The names of the form, and NumPy's dtypes."""

LENGTH_BYTES = 8
_LONGEST_POINTER = 1024  # Bytes, by the specification of Git LFS.
_LARGEST_HEADER = 10**8  # Bytes; what the `safetensors` package allows.


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of a tensor.

    Args:
        path: `pathlib.Path` of the file.
        dtype: string. One of `DTYPES`.
        shape: tuple of integers.
        begin: integer. The byte of the file at which it begins.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        """The bytes that it has in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a file by their names; none of them is read.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing, cut short or torn, or holds what this release does not
            read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            check_not_pointer(path, file.read(_LONGEST_POINTER))
            file.seek(0)
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or not 0 < length <= min(size - LENGTH_BYTES, _LARGEST_HEADER):
                raise _torn(path, f"it has {size} bytes and no header that fits into them")
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name!r} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _torn(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _torn(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    data_begin = LENGTH_BYTES + length
    places = {name: _read_place(path, name, entry) for name, entry in header.items()}
    _check_places(path, places.values(), size - data_begin)
    return {
        name: StoredTensor(path, dtype, shape, data_begin + begin)
        for name, (dtype, shape, begin, _) in places.items()
    }


def _read_place(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _torn(path, f"its header does not say where {name!r} is") from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise _torn(path, f"its header has no valid shape and place of {name!r}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path.name!r}: the tensor {name!r} is of dtype {dtype!r}; those that can be read "
            f"are {', '.join(DTYPES)}."
        )
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _torn(path, f"its header gives {name!r} a place that its shape does not fill")
    return dtype, shape, begin, end


def _check_places(
    path: Path, places: Iterable[tuple[str, tuple[int, ...], int, int]], size: int
) -> None:
    """Says where the bytes of the tensors are not all of the bytes behind the header."""
    end = 0
    for begin, next_end in sorted(place[2:] for place in places):
        if begin != end:
            raise _torn(path, f"its tensors overlap or leave a gap at byte {end}")
        end = next_end
    if size != end:
        raise _torn(path, f"it has {size} bytes of tensors where its header tells of {end}")


def _torn(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name!r} is torn or no safetensors file: {why}. Fetch or copy it again."
    )


class MappedFiles:
    """Safetensors files that are mapped into memory as tensors are read of them.

    Example:

    >>> with MappedFiles() as files:
    ...     pass
    """

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def __enter__(self) -> "MappedFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        self._maps.clear()  # Each is closed with the last array that shows it.

    def read(self, tensor: StoredTensor) -> Array:
        """Returns a tensor as an array that shows the file, and is read when its numbers are.

        Args:
            tensor: `StoredTensor`.
        """
        dtype = DTYPES[tensor.dtype]
        if not tensor.num_bytes:
            return np.empty(tensor.shape, dtype)
        mapped = self._map(tensor.path)
        values = np.frombuffer(mapped, "u1", tensor.num_bytes, tensor.begin)
        return values.view(dtype).reshape(tensor.shape)

    def release(self, tensor: StoredTensor) -> None:
        """Gives the memory back that the pages of a tensor take; they may be read again.

        Args:
            tensor: `StoredTensor`.
        """
        mapped = self._maps.get(tensor.path)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        begin = tensor.begin - tensor.begin % mmap.PAGESIZE
        length = tensor.begin + tensor.num_bytes - begin
        mapped.madvise(mmap.MADV_DONTNEED, begin, length)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                # A private map may be written to, as PyTorch asks of arrays, and nobody does.
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]
