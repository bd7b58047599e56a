"""Import of ONNX packages, with an error that names the pip extra."""

import importlib
from typing import Any

from keras_deepseek.errors import MissingExtraError


def import_package(name: str) -> Any:
    """Imports a module of the pip extra `onnx`, or raises a `MissingExtraError`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, _ = name.partition(".")
        raise MissingExtraError(package, "onnx", "to export and verify ONNX") from error
