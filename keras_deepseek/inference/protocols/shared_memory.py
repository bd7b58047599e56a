"""System shared memory of Open Inference: tensors that stay in POSIX memory of the client.

A client on the server's machine registers a region under a name. Its requests then name the region,
an offset and a size in place of the values. The bytes of an input are copied once, when the request
is read; those of an output are written when the answer is made.

Regions are read by `pread` and written by `pwrite`, never mapped: a mapped region that its client
makes smaller would end the process by SIGBUS.
"""

import os
import re
import stat
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.protocols.tensor_bytes import to_bytes

FOLDER = "/dev/shm"
"""The folder in which Linux has POSIX shared memory, which other systems don't have as files."""

THREAD_BYTES = 2**16
"""More bytes are copied on a thread, so that other requests don't wait."""

MAX_REGIONS = 256
"""Each region keeps a file open."""

REGION = "shared_memory_region"
OFFSET = "shared_memory_offset"
BYTE_SIZE = "shared_memory_byte_size"
"""The parameters of an input or an output that lies in shared memory."""

_KEY = re.compile(r"/?(?!\.{1,2}$)[^/\0]{1,254}")
_LARGEST = 2**63 - 1
"""Offsets of files have 63 bits."""


class _File:
    """An open file, closed when nothing uses it any longer.

    So a region can be unregistered while a request reads it.
    """

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self.descriptor = os.open(path, flags)
        weakref.finalize(self, os.close, self.descriptor)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise OSError(None, "It is not a regular file")

    @property
    def size(self) -> int:
        """The bytes that it has now."""
        return os.fstat(self.descriptor).st_size


@dataclass(frozen=True)
class Region:
    """Shared memory that a client registered: `byte_size` bytes of `key`, from `offset` on."""

    name: str
    key: str
    offset: int
    byte_size: int
    file: _File


@dataclass(frozen=True)
class MemoryRange:
    """The bytes of one tensor in a region. `offset` counts from the start of the region."""

    region: Region
    offset: int
    byte_size: int

    def read(self, where: str) -> memoryview:
        """Returns a copy of the bytes."""
        self._check_file(where)
        data = np.empty(self.byte_size, np.uint8).data
        start, position = self.region.offset + self.offset, 0
        while position < len(data):
            count = os.preadv(self.region.file.descriptor, [data[position:]], start + position)
            if not count:
                self._check_file(where)
                raise InvalidInputError(f"{where}: its shared memory changed while it was read.")
            position += count
        return data

    def write(self, array: Array, where: str) -> dict[str, str | int]:
        """Writes an output, and returns the parameters of the answer that say where it is."""
        if array.dtype.kind in "OUS":
            data = memoryview(to_bytes(array))
        else:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if len(data) > self.byte_size:
            raise InvalidInputError(
                f"{where}: received {BYTE_SIZE} {self.byte_size}; the output has {len(data)} bytes."
            )
        self._check_file(where)
        start, position = self.region.offset + self.offset, 0
        try:
            while position < len(data):
                position += os.pwrite(
                    self.region.file.descriptor, data[position:], start + position
                )
        except OSError as error:
            raise InvalidInputError(
                f"{where}: can't write to the shared memory region {self.region.name!r}: "
                f"{error.strerror}."
            ) from error
        offset = {OFFSET: self.offset} if self.offset else {}
        return {REGION: self.region.name, BYTE_SIZE: len(data), **offset}

    def _check_file(self, where: str) -> None:
        """Raises an error if the client has made its memory too small since it was registered."""
        size, region = self.region.file.size, self.region
        if size < region.offset + self.offset + self.byte_size:
            remaining = max(size - region.offset, 0)
            raise InvalidInputError(
                f"{where}: the shared memory region {region.name!r} was registered with "
                f"{region.byte_size} bytes, of which {remaining} are left; the tensor ends at byte "
                f"{self.offset + self.byte_size}."
            )


class SharedInput(NamedTuple):
    """An input in shared memory, and the function that makes the tensor of its bytes."""

    memory: MemoryRange
    make: Callable[[memoryview], Any]


class SharedMemory:
    """The regions of shared memory that clients have registered."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: Any, key: Any, offset: Any, byte_size: Any) -> None:
        """Opens shared memory by the key of `shm_open`, and registers it under a name."""
        where = f"Shared memory region {name!r:.100}"
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"{where}: expected the region's name, a string.")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidInputError(
                f"{where}: received key {key!r:.100}; expected the name of POSIX shared memory, as "
                "in '/input_data', with no other slash."
            )
        offset, byte_size = _check_sizes(offset, byte_size, "offset", "byte_size", where)
        if name in self._regions:
            raise self._registered(name)
        if len(self._regions) >= MAX_REGIONS:
            raise InvalidInputError(
                f"{where}: {MAX_REGIONS} regions are registered, the most of a server. Unregister "
                "those that are no longer used."
            )
        try:
            file = _File(f"{FOLDER}/{key.removeprefix('/')}")
        except (OSError, UnicodeEncodeError) as error:
            reason = getattr(error, "strerror", None) or "its name is not UTF-8"
            raise InvalidInputError(
                f"{where}: can't open the shared memory {key!r:.100}: {reason}. Create it before "
                "it is registered, and let the server's user read and write it."
            ) from error
        if offset + byte_size > file.size:
            raise InvalidInputError(
                f"{where}: received offset {offset} and byte_size {byte_size}; the shared memory "
                f"{key!r:.100} has {file.size} bytes."
            )
        region = Region(name, key, offset, byte_size, file)
        # Both servers of an engine may register at the same time.
        if self._regions.setdefault(name, region) is not region:
            raise self._registered(name)

    def unregister(self, name: str = "") -> None:
        """Forgets a region, or all if `name` is empty. Requests that use it are answered.

        An unknown name is no error, as in Triton: clients begin with it, to clean up.
        """
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> list[dict[str, str | int]]:
        """Returns the region with a name, or all if `name` is empty."""
        regions = [self._find(name, "The request")] if name else list(self._regions.values())
        return [
            {
                "name": region.name,
                "key": region.key,
                "offset": region.offset,
                "byte_size": region.byte_size,
            }
            for region in regions
        ]

    def find(self, parameters: Mapping[str, Any], where: str) -> MemoryRange:
        """Returns the memory that the parameters of a tensor name."""
        region = self._find(parameters[REGION], where)
        offset, byte_size = _check_sizes(
            parameters.get(OFFSET, 0), parameters.get(BYTE_SIZE), OFFSET, BYTE_SIZE, where
        )
        if offset + byte_size > region.byte_size:
            raise InvalidInputError(
                f"{where}: received {OFFSET} {offset} and {BYTE_SIZE} {byte_size}; the region "
                f"{region.name!r} has {region.byte_size} bytes."
            )
        return MemoryRange(region, offset, byte_size)

    def _find(self, name: Any, where: str) -> Region:
        region = self._regions.get(name) if isinstance(name, str) else None
        if region is None:
            message = unknown_name_message("shared memory region", name, list(self._regions))
            raise InvalidInputError(f"{where}: {message}")
        return region

    def _registered(self, name: str) -> InvalidInputError:
        return InvalidInputError(
            f"The shared memory region {name!r:.100} is registered already. Unregister it, or "
            "choose another name."
        )


OpenMemory = Callable[[], SharedMemory]
"""Returns the regions for the client of a request, or raises an error if it may not use them."""


def find_range(
    parameters: Mapping[str, Any], where: str, open_memory: OpenMemory | None
) -> MemoryRange | None:
    """Returns the shared memory of an input or an output, or `None` if it is not there."""
    if REGION not in parameters:
        return None
    if open_memory is None:
        raise InvalidInputError(f"{where}: the parameter {REGION!r} is not supported.")
    return open_memory().find(parameters, where)


def _check_sizes(
    offset: Any, byte_size: Any, offset_name: str, size_name: str, where: str
) -> tuple[int, int]:
    for name, value in ((offset_name, offset), (size_name, byte_size)):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= _LARGEST:
            raise InvalidInputError(
                f"{where}: received {name} {value!r:.30}; expected a number of bytes, 0 or above."
            )
    return offset, byte_size
