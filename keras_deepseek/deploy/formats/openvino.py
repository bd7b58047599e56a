"""The OpenVINO export format: Intel's runtime, converted from the model's ONNX file."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_deepseek.artifacts.signature import Batch, InferenceFunction, Signature
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
    """The OpenVINO format: `model.xml` and `model.bin`, converted from ONNX, run on the CPU.

    `opset`, from 18 to 25, is that of the ONNX file.
    """

    name = "openvino"
    suffix = ""
    entry = "model.xml"
    distributions = ("openvino",)
    backends = OnnxFormat.backends
    writes_programs = True
    packages = MappingProxyType(
        {name: {**extras, "openvino": "openvino"} for name, extras in OnnxFormat.packages.items()}
    )

    def __init__(self, opset: int = 18) -> None:
        self._onnx = OnnxFormat(opset)

    def check_signature(self, signature: Signature) -> None:
        self._onnx.check_signature(signature)

    def check_backend(self, model: NamedModel, name: str) -> None:
        self._onnx.check_backend(model, name)

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes the OpenVINO model in the precision of the Keras model."""
        return self._convert(lambda work: self._onnx.write(model, work), folder)

    def write_program(self, model: NamedModel, batch: Batch, folder: Path) -> str:
        """Writes the OpenVINO model from the ONNX file of the model's program."""
        return self._convert(lambda work: self._onnx.write_program(model, batch, work), folder)

    def _convert(self, write: Callable[[Path], str], folder: Path) -> str:
        openvino = import_openvino("to export OpenVINO")
        with temporary_folder("keras_deepseek_openvino") as work:
            how = write(work)
            # `openvino.convert_model` does the same, and sends telemetry.
            converted = shared_core(openvino).read_model(work / self._onnx.entry)
        _keep_the_order_of_equals(converted)
        openvino.save_model(converted, folder / self.entry, compress_to_fp16=False)
        return f"OpenVINO {openvino.__version__.partition('-')[0]} from {how}"

    def run(self, folder: Path, samples: list[Batch]) -> list[Batch]:
        """Runs the OpenVINO model in its own precision, not in the CPU's default precision."""
        infer = self.load(folder)
        return [infer(sample) for sample in samples]

    def load(self, folder: Path) -> InferenceFunction:
        return OpenVINOModel(folder / self.entry, "to run OpenVINO").run


def _keep_the_order_of_equals(model: Any) -> None:
    """Makes `TopK` nodes return the first of equal values, as ONNX requires.

    OpenVINO's default is any of them.
    """
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
