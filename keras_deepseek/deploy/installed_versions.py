"""The versions of the installed packages that an export may use."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterable

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
)


def installed_versions(further: Iterable[str] = ()) -> dict[str, str]:
    """Returns the versions of Keras, NumPy, the frameworks, ONNX's packages and further ones.

    Packages that are not installed are left out.
    """
    installed = {"keras_deepseek": __version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *further):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
