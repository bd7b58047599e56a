"""Import of optional packages, with an error that names the extra."""

import importlib
from typing import Any

from keras_deepseek.errors import MissingExtraError


def import_extra(name: str, extra: str, purpose: str) -> Any:
    """Imports an optional module, or raises an error that names the pip extra to install.

    `purpose`, as in "to export ONNX", is for the error message.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, _, _ = name.partition(".")
        raise MissingExtraError(package, extra, purpose) from error
