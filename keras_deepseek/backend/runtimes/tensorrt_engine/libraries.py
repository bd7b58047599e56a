"""NVIDIA's two libraries with one API: plain TensorRT, and TensorRT-RTX.

Neither runs an engine of the other. The route in a bundle's manifest says which one built it.
"""

import importlib
import re
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
