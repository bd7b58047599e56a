"""The first import of Keras; if its framework is missing, the error says what to install."""

import importlib.util

from keras_deepseek.backend import NAMES
from keras_deepseek.errors import MissingExtraError

__all__ = ["keras"]

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in NAMES:
        raise
    there = [name for name in NAMES if importlib.util.find_spec(name)]
    missing = MissingExtraError(str(error.name), str(error.name), "by Keras")
    if there:
        missing.msg = (
            f"Keras runs on {error.name} unless KERAS_BACKEND names another, and {error.name} is "
            f"not installed. Set KERAS_BACKEND={there[0]}, which is installed, or install it: pip "
            f"install 'keras_deepseek[{error.name}]'"
        )
    raise missing from None
