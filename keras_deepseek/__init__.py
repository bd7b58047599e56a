"""Keras 3 models from an idea to a service, on TensorFlow, JAX and PyTorch.

Importing this package loads no framework: each public module is imported on first use.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_PUBLIC_MODULES = (
    "artifacts",
    "callbacks",
    "chat",
    "deploy",
    "errors",
    "graph",
    "inference",
    "layers",
    "models",
    "operator",
    "studio",
    "testing",
    "training",
)

__all__ = ["__version__", *_PUBLIC_MODULES]  # noqa: PLE0604 - the tuple holds strings only


def __getattr__(name: str) -> ModuleType:
    if name in _PUBLIC_MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
