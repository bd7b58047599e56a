"""Import of optional packages, with an error that names the extra."""

import importlib
from typing import Any

from keras_deepseek.errors import MissingExtraError


def import_extra(name: str, extra: str, purpose: str) -> Any:
    """Imports a module of an optional package.

    Args:
        name: string. The module, as in `"onnxruntime.quantization"`.
        extra: string. The extra of `keras_deepseek` that installs its package.
        purpose: string. The purpose for the error message, as in "to export ONNX".

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, _ = name.partition(".")
        raise MissingExtraError(package, extra, purpose) from error
