"""OpenVINO: Intel's runtime, from the ONNX of the same model."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_deepseek.artifacts.signature import Array, InferenceFunction, Signature
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.runtimes.openvino_model import (
    OpenVINOModel,
    import_openvino,
    shared_core,
)
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.onnx import OnnxFormat


class OpenVINOFormat(ExportFormat):
    """Writes `model.xml` and `model.bin`, and runs them by OpenVINO on the CPU.

    Args:
        opset: integer. The version of ONNX's default operator set on the way there, from 13 to 25.
            Defaults to `18`.

    Raises:
        InvalidInputError: The version is another.
    """

    name = "openvino"
    suffix = ""
    entry = "model.xml"
    distributions = ("openvino",)
    backends = OnnxFormat.backends
    packages = MappingProxyType(
        {name: {**each, "openvino": "openvino"} for name, each in OnnxFormat.packages.items()}
    )

    def __init__(self, opset: int = 18) -> None:
        self._onnx = OnnxFormat(opset)

    def check_signature(self, signature: Signature) -> None:
        """Raises an `InvalidInputError` where ONNX has no such names."""
        self._onnx.check_signature(signature)

    def check_backend(self, model: NamedModel, name: str) -> None:
        """Raises a `NotSupportedError` where a backend can't write the model as ONNX."""
        self._onnx.check_backend(model, name)

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes the model in the precision that it computes in."""
        openvino = import_openvino("to export OpenVINO")
        with temporary_folder("keras_deepseek_openvino") as work:
            how = self._onnx.write(model, work)
            # `openvino.convert_model` does the same, and reports that it was used.
            converted = shared_core(openvino).read_model(work / self._onnx.entry)
        _keep_the_order_of_equals(converted)
        openvino.save_model(converted, folder / self.entry, compress_to_fp16=False)
        return f"OpenVINO {openvino.__version__.partition('-')[0]} from {how}"

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the model in the precision that it has: the CPU's own choice may be another."""
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        """Returns the model as a function of arrays by name."""
        return OpenVINOModel(folder / self.entry, "to run OpenVINO").run


def _keep_the_order_of_equals(model: Any) -> None:
    """Makes `TopK` take the first of equal values, as ONNX says: OpenVINO takes any by itself."""
    for operator in model.get_ops():
        kind = operator.get_type_name()
        if kind == "TopK":
            operator.set_attribute("sort", "value")  # By another order, no equals have theirs.
            operator.set_attribute("stable", True)  # noqa: FBT003 - it has no names.
        elif kind in ("Loop", "TensorIterator"):
            _keep_the_order_of_equals(operator.get_function())
        elif kind == "If":
            for branch in range(2):
                _keep_the_order_of_equals(operator.get_function(branch))
