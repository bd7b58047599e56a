"""Counts NVIDIA GPUs by their driver, without any framework."""

import ctypes
import sys

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def count_gpus() -> int:
    """Returns the number of GPUs that CUDA's driver reports, 0 without a driver.

    It respects `CUDA_VISIBLE_DEVICES`, as the driver does.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
