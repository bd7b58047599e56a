"""Settings of glibc's `malloc` that keep freed memory in the process during a training.

A training step frees its large temporary tensors, and the next step allocates the same ones again.
glibc returns such blocks to the system at once, which must then clear each of their pages for the
next step. On a CPU that can take as long as the computation itself.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # Of `mallopt`, in malloc.h.

_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
"""Allocates all blocks in the heap, and never shrinks the heap."""

_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
"""The largest values that glibc's own, dynamic thresholds reach after large blocks were freed.

glibc can't tell the current values, and they stay fixed once one of them was set.
"""

_lock = threading.Lock()
_users = 0


@contextmanager
def tune_malloc() -> Iterator[None]:
    """Context manager that keeps freed memory in the process.

    It may be nested, or entered on several threads: the last exit returns the memory.

    It does nothing if the C library is not glibc, or if the environment sets options of its
    `malloc`. The process keeps at most the memory of a step's peak, and returns it at the end.
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


def _count(change: int, set_options: Callable[[], None]) -> None:
    """Counts an entry (1) or an exit (-1) of `tune_malloc`.

    Calls `set_options` at the first entry and at the last exit.
    """
    global _users  # noqa: PLW0603 - the process has one heap.
    with _lock:
        if 0 in (_users, _users + change):
            set_options()
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
