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
    """`model.xml` and `model.bin`, made from ONNX and run with OpenVINO on the CPU.

    `opset`, from 13 to 25, is that of the ONNX file.
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
        """Rejects names that are shared by an input and an output."""
        self._onnx.check_signature(signature)

    def check_backend(self, model: NamedModel, name: str) -> None:
        """Raises if a backend can't write the model as ONNX."""
        self._onnx.check_backend(model, name)

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes the model in its own precision."""
        openvino = import_openvino("to export OpenVINO")
        with temporary_folder("keras_deepseek_openvino") as work:
            how = self._onnx.write(model, work)
            # `openvino.convert_model` does the same, and sends telemetry.
            converted = shared_core(openvino).read_model(work / self._onnx.entry)
        _keep_the_order_of_equals(converted)
        openvino.save_model(converted, folder / self.entry, compress_to_fp16=False)
        return f"OpenVINO {openvino.__version__.partition('-')[0]} from {how}"

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the model in its own precision; OpenVINO's default on the CPU may be another."""
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        """Returns the model as a function of arrays by name."""
        return OpenVINOModel(folder / self.entry, "to run OpenVINO").run


def _keep_the_order_of_equals(model: Any) -> None:
    """Makes `TopK` take the first of equal values, as ONNX requires; OpenVINO's default is any."""
    for operator in model.get_ops():
        kind = operator.get_type_name()
        if kind == "TopK":
            operator.set_attribute("sort", "value")  # `stable` has an effect only in this order.
            operator.set_attribute("stable", True)  # noqa: FBT003 - it takes no keywords.
        elif kind in ("Loop", "TensorIterator"):
            _keep_the_order_of_equals(operator.get_function())
        elif kind == "If":
            for branch in range(2):
                _keep_the_order_of_equals(operator.get_function(branch))
