"""Keras 3 models from an idea to a service, on TensorFlow, JAX and PyTorch.

Importing this package loads no framework: each sub-package is imported on first use.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = (
    "artifacts",
    "callbacks",
    "deploy",
    "graph",
    "inference",
    "layers",
    "models",
    "testing",
    "training",
)

__all__ = ["__version__", *_SUBPACKAGES]  # noqa: PLE0604 - the tuple holds strings only


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
