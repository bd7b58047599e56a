"""Conversion of a graph to a newer opset than the exporter wrote."""

from typing import Any

from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.errors import ExportError


def raise_opset(model: Any, opset: int) -> Any:
    """Converts a graph to a newer opset; returns it unchanged if it has that opset."""
    (written,) = {entry.version for entry in model.opset_import if not entry.domain}
    if written == opset:
        return model
    onnx = import_package("onnx")
    import_package("onnx.version_converter")
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # The converter's C++ code raises several types.
        raise ExportError(
            f"It was written with opset {written}, and onnx {onnx.__version__} can't convert that "
            f"to the requested opset {opset}: {failure_reason(error)}. Pass opset={written}."
        ) from error
