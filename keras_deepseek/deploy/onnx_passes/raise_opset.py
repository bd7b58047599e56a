"""Takes a graph to a newer opset than the backend's exporter writes."""

from typing import Any

from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.errors import ExportError


def raise_opset(model: Any, opset: int) -> Any:
    """Returns a graph whose default operator set is of this version.

    Args:
        model: `onnx.ModelProto`.
        opset: integer. The version asked for.

    Returns:
        `onnx.ModelProto`; the given one where it has this version already.

    Raises:
        ExportError: ONNX's converter can't take the graph there.
    """
    (written,) = {each.version for each in model.opset_import if not each.domain}
    if written == opset:
        return model
    onnx = import_package("onnx")
    import_package("onnx.version_converter")
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # Of whatever type the converter's C++ has.
        raise ExportError(
            f"It was written with opset {written}, and onnx {onnx.__version__} can't convert that "
            f"to the opset {opset} that was asked for: {failure_reason(error)}. Ask for "
            f"opset={written}."
        ) from error
