"""NVIDIA's libraries: whether they load, their GPUs, and the errors that they log."""

import ctypes
import importlib
import re
import sys
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
_EXTRAS = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}


def import_library(flavor: str, purpose: str) -> Any:
    """Imports the module of TensorRT (`"tensorrt"`) or TensorRT-RTX (`"rtx"`)."""
    try:
        return importlib.import_module(MODULES[flavor])
    except ImportError as error:
        raise MissingExtraError(MODULES[flavor], _EXTRAS[flavor], purpose) from error


def mark_flavor(flavor: str) -> str:
    """Returns the text in a bundle's route that names the library which built its engine."""
    return f"(flavor {flavor})"


def read_flavor(route: str) -> str:
    """Reads from a manifest's route which library built the engine; see `mark_flavor`."""
    match = re.search(r"\(flavor (\w+)\)", route)
    if match is None or match[1] not in MODULES:
        raise InvalidInputError(
            f"The route {route!r} does not say which of {', '.join(TITLES.values())} built the "
            "engine. Export it again."
        )
    return match[1]


def make_error_log(tensorrt: Any) -> Any:
    """Returns a TensorRT logger that collects errors in its list `errors`, and prints nothing."""

    class ErrorLog(tensorrt.ILogger):
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)  # The C++ base class requires the explicit call.
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= tensorrt.ILogger.ERROR:
                self.errors.append(message)

    return ErrorLog()


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
