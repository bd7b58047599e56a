"""Reads the memory that a training uses at the moment."""

import sys
from pathlib import Path

from keras_deepseek import backend

_STATUS = Path("/proc/self/statm")


def read_memory() -> dict[str, int]:
    """Returns the number of bytes that the process and the accelerator use.

    Returns:
        A dict with `process_memory_bytes`, the resident memory (on macOS its peak; on Windows
        missing), and `device_memory_bytes` if the framework's allocator counts them.
    """
    found = {}
    process = _read_process()
    if process is not None:
        found["process_memory_bytes"] = process
    device = backend.current().devices.read_device_memory()
    if device is not None:
        found["device_memory_bytes"] = device["in_use"]
    return found


def _read_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    try:
        return int(_STATUS.read_bytes().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
