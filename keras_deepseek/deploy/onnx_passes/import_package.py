"""Import of ONNX packages, with an error that names the pip extra."""

from typing import Any

from keras_deepseek.deploy.import_extra import import_extra


def import_package(name: str) -> Any:
    """Imports a module of the pip extra `onnx`, or raises a `MissingExtraError`."""
    return import_extra(name, "onnx", "to export and verify ONNX")
