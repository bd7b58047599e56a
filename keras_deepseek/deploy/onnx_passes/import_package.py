"""The packages that ONNX takes, or the extra that brings them."""

import importlib
from typing import Any

from keras_deepseek.artifacts.errors import MissingExtraError


def import_package(name: str) -> Any:
    """Returns a module of the packages in the extra `onnx`.

    Args:
        name: string. As in `"onnxruntime.quantization"`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, _ = name.partition(".")
        raise MissingExtraError(package, "onnx", "to export and verify ONNX") from error
