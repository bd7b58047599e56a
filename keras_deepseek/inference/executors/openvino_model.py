"""Bundles of OpenVINO models. They run on the CPU and need OpenVINO alone, no framework."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes import openvino_model
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.executors.runtime_signature import check_names


class OpenVINOModel(Executor):
    """Runs a bundle's OpenVINO `.xml` file with the code that the export's verification uses."""

    def __init__(self, path: Path, signature: Signature, threads: int | None = None) -> None:
        self._model = openvino_model.OpenVINOModel(path, "to serve OpenVINO", threads)
        check_names(path, self._model.input_names, self._model.output_names, signature)
        self._signature = signature

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "OpenVINOModel":
        return cls(bundle.entry, bundle.manifest.signature, threads)

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._model.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}
