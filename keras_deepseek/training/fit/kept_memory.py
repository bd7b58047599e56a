"""The C library's memory, kept by the process while it trains.

A training step frees its large temporaries, and the next one asks for the same again. glibc gives
such blocks back to the system at once, which must then clear each of their pages anew: on a CPU
that takes as long as the computing itself. `StepPlan` keeps them for as long as a training lasts.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # Of `mallopt`, in malloc.h.

_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
"""No block is mapped by itself, and the heap never shrinks."""

_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own thresholds, which follow the blocks that are freed, end up after large ones.

They can't be read, and don't move any more once one of them was set.
"""

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keeps memory that is freed for the next block, until the last such `with` block ends.

    It does nothing where the C library is not glibc, or where the environment has settings for its
    `malloc`. The process takes no more than at the peak of a step, and gives it back at the end.
    """
    library = _find_library()
    if library is None:
        yield
        return
    _count(1, lambda: _set(library, _KEEPING))
    try:
        yield
    finally:
        _count(-1, lambda: _give_back(library))


def _count(change: int, act: Callable[[], None]) -> None:
    """Counts a user more or less, and acts where it is the first or was the last."""
    global _users  # noqa: PLW0603 - the process has one heap.
    with _lock:
        if 0 in (_users, _users + change):
            act()
        _users += change


def _find_library() -> ctypes.CDLL | None:
    is_set = any(
        name.startswith("MALLOC_") or (name == "GLIBC_TUNABLES" and "glibc.malloc" in value)
        for name, value in os.environ.items()
    )
    if is_set or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def _set(library: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)


def _give_back(library: ctypes.CDLL) -> None:
    _set(library, _USUAL)
    library.malloc_trim(0)
