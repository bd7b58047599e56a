"""Import of packages that ONNX needs, with an error that names the extra."""

from typing import Any

from keras_deepseek.deploy.import_extra import import_extra


def import_package(name: str) -> Any:
    """Imports a module from a package of the extra `onnx`, or raises a `MissingExtraError`."""
    return import_extra(name, "onnx", "to export and verify ONNX")
