"""The packages that ONNX takes, or the extra that brings them."""

from typing import Any

from keras_deepseek.deploy.import_extra import import_extra


def import_package(name: str) -> Any:
    """Returns a module of the packages in the extra `onnx`.

    Args:
        name: string. As in `"onnxruntime.quantization"`.

    Raises:
        MissingExtraError: It is not installed.
    """
    return import_extra(name, "onnx", "to export and verify ONNX")
