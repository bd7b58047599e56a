"""How many of NVIDIA's GPUs this process sees, asked of the driver, without any framework."""

import ctypes
import sys

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def count_gpus() -> int:
    """Returns how many GPUs CUDA's driver offers; none where there is no driver.

    `CUDA_VISIBLE_DEVICES` is heeded, as the driver does.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
