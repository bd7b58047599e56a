"""A bundle that holds an OpenVINO model: OpenVINO alone, on the CPU, without any framework."""

from pathlib import Path

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes import openvino_model
from keras_deepseek.inference.executors.found_signature import check_names


class OpenVINOModel:
    """Runs a bundle's OpenVINO model as the export's verification ran it.

    Args:
        path: `pathlib.Path` of the `.xml` file.
        signature: `Signature` of the bundle's manifest.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        InvalidInputError: OpenVINO can't load the file, or its names differ from the manifest's.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        self._model = openvino_model.OpenVINOModel(path, "to serve OpenVINO")
        check_names(path, self._model.input_names, self._model.output_names, signature)
        self._signature = signature

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name."""
        outputs = self._model.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}
