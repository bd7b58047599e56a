"""The first import of Keras: where its framework is missing, the error says what to do."""

import importlib.util

from keras_deepseek.artifacts.errors import MissingExtraError
from keras_deepseek.backend import NAMES

__all__ = ["keras"]

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in NAMES:
        raise
    there = [name for name in NAMES if importlib.util.find_spec(name)]
    other = f"set KERAS_BACKEND={there[0]}, which is installed" if there else "none is installed"
    raise MissingExtraError(
        str(error.name), str(error.name), f"by Keras, unless KERAS_BACKEND names another ({other}),"
    ) from None
