"""The functions of Keras's PyTorch backend that other code may run in their place."""

from collections.abc import Callable
from types import ModuleType
from typing import Any


def torch_functions(**functions: Callable[..., Any]) -> dict[tuple[ModuleType, str], Any]:
    """Returns replacements of functions of `keras.src.backend.torch.nn` for `replaced_methods`."""
    from keras.src.backend.torch import nn

    return {(nn, name): function for name, function in functions.items()}
