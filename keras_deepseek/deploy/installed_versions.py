"""The releases of what an export may go through."""

import contextlib
import importlib.metadata
import platform

from keras_deepseek import __version__

_PACKAGES = (
    "keras",
    "numpy",
    "tensorflow",
    "jax",
    "torch",
    "onnx",
    "tf2onnx",
    "jax2onnx",
    "onnxscript",
    "onnxslim",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu12",
)


def installed_versions() -> dict[str, str]:
    """Returns the release of each package on this machine that an export may go through."""
    installed = {"keras_deepseek": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
