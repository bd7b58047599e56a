"""Reading of one safetensors file, with a checked header and memory-mapped tensors.

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
import weakref
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
"""NumPy dtypes by their names in the safetensors format."""

LENGTH_BYTES = 8
_LONGEST_POINTER = 1024  # Bytes, from the specification of Git LFS.
_MOST_AXES = 32  # NumPy 1's limit.
_LARGEST_HEADER = 10**8  # Bytes, as in the `safetensors` package.


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: its dtype, shape and byte position from the header.

    `dtype` is one of the names in `DTYPES`; `begin` is the position of the first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        """The size of the tensor in the file, in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def parts(self) -> tuple["StoredTensor", ...]:
        """The stored tensors that make up this tensor: only itself."""
        return (self,)

    def read(self, files: "MappedFiles") -> Array:
        """Returns the tensor as a view of its memory-mapped file."""
        return files.read(self)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Reads and validates the header of a safetensors file, and returns its tensors by name."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            check_not_pointer(path, file.read(_LONGEST_POINTER))
            file.seek(0)
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or not 0 < length <= min(size - LENGTH_BYTES, _LARGEST_HEADER):
                raise _damaged(path, f"it has {size} bytes, too few for its header")
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name!r} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    data_begin = LENGTH_BYTES + length
    tensors = {name: _read_entry(path, name, entry) for name, entry in header.items()}
    _check_ranges(path, tensors.values(), size - data_begin)
    return {
        name: StoredTensor(path, dtype, shape, data_begin + begin)
        for name, (dtype, shape, begin, _) in tensors.items()
    }


def _read_entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header has no valid entry for {name!r}") from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise _damaged(path, f"its header has no valid shape and byte range for {name!r}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path.name!r}: the tensor {name!r} has dtype {dtype!r}. Expected one of "
            f"{', '.join(DTYPES)}."
        )
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(path, f"the byte range of {name!r} does not match its shape")
    # NumPy can't make an array of more axes or bytes, not even one without elements.
    if len(shape) > _MOST_AXES or math.prod(size or 1 for size in shape) >= 2**59:
        raise _damaged(path, f"the tensor {name!r} has {len(shape)} axes, or is too large")
    return dtype, shape, begin, end


def _check_ranges(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...], int, int]], size: int
) -> None:
    """Raises an error if byte ranges of tensors overlap, leave gaps or miss the file's end."""
    end = 0
    for begin, next_end in sorted(tensor[2:] for tensor in tensors):
        if begin != end:
            raise _damaged(path, f"its tensors overlap or leave a gap at byte {end}")
        end = next_end
    if size != end:
        raise _damaged(path, f"it has {size} bytes of tensors, and its header describes {end}")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name!r} is damaged or not a safetensors file: {why}. Fetch or copy it again."
    )


class MappedFile:
    """A memory-mapped file, and its size and time of change when it was mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._number)
        self._state = self._read_state()
        # PyTorch wants writable arrays. A private map is writable, and the file is safe.
        self.memory = mmap.mmap(self._number, 0, access=mmap.ACCESS_COPY)

    def check(self) -> None:
        """Raises a `CheckpointError` if the file was written to since it was mapped."""
        if self._read_state() != self._state:
            raise CheckpointError(
                f"{str(self.path)!r} was changed in place, and the model reads its weights from "
                "that file. Load the model again. To replace a checkpoint that is in use, write "
                "a new file and rename it to the old one, as `save_to_preset` does."
            )

    def _read_state(self) -> tuple[int, int]:
        status = os.fstat(self._number)
        return status.st_size, status.st_mtime_ns


class MappedFiles:
    """A set of safetensors files that are memory-mapped when a tensor is read from them."""

    def __init__(self) -> None:
        self._files: dict[Path, MappedFile] = {}

    def __enter__(self) -> "MappedFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.clear()  # A map is closed with the last array that uses it.

    def read(self, tensor: StoredTensor) -> Array:
        """Returns a tensor as a view of its mapped file; a page is read at its first access."""
        dtype = DTYPES[tensor.dtype]
        if not tensor.num_bytes:
            return np.empty(tensor.shape, dtype)
        memory = self.file_of(tensor).memory
        values = np.frombuffer(memory, "u1", tensor.num_bytes, tensor.begin)
        return values.view(dtype).reshape(tensor.shape)

    def release(self, tensor: StoredTensor) -> None:
        """Frees the memory pages of a mapped tensor; later access reads the file again."""
        file = self._files.get(tensor.path)
        if file is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        begin = tensor.begin - tensor.begin % mmap.PAGESIZE
        length = tensor.begin + tensor.num_bytes - begin
        file.memory.madvise(mmap.MADV_DONTNEED, begin, length)

    def file_of(self, tensor: StoredTensor) -> MappedFile:
        """Returns the file of a tensor, which is mapped at the first call."""
        if tensor.path not in self._files:
            self._files[tensor.path] = MappedFile(tensor.path)
        return self._files[tensor.path]
