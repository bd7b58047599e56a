"""Packages that not every export takes, or the extra that brings them."""

import importlib
from typing import Any

from keras_deepseek.errors import MissingExtraError


def import_extra(name: str, extra: str, purpose: str) -> Any:
    """Returns a module.

    Args:
        name: string. As in `"onnxruntime.quantization"`.
        extra: string. The extra of `keras_deepseek` that brings its package.
        purpose: string. What it is needed for, as in "to export ONNX".

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, _ = name.partition(".")
        raise MissingExtraError(package, extra, purpose) from error
