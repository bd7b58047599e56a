"""Bundles of TensorRT and TensorRT-RTX engines. They run on NVIDIA GPUs alone."""

from collections.abc import Sequence
from os import PathLike

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes.tensorrt_engine import visible_gpus
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import EngineRunner
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import import_library, read_flavor
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.executors.runtime_signature import check_names


class TensorRTEngine(Executor):
    """Runs a bundle's engine on the current GPU, with its own stream and memory.

    Batches must fit one of the engine's profiles.
    """

    def __init__(self, bundle: Bundle) -> None:
        if not visible_gpus.count_gpus():
            raise NotSupportedError(
                f"The bundle at {str(bundle.path)!r} holds a TensorRT engine, which runs on an "
                "NVIDIA GPU, and none is visible here."
            )
        library = import_library(read_flavor(bundle.manifest.route), "to serve an engine")
        self._runner = EngineRunner(library, bundle.entry.read_bytes())
        self._signature = bundle.manifest.signature
        try:
            inputs, outputs = self._runner.input_names, self._runner.output_names
            check_names(bundle.entry, inputs, outputs, self._signature)
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "TensorRTEngine":
        return cls(bundle)

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Computes a batch. Raises `NotSupportedError` if no profile has the batch's shape."""
        outputs = self._runner.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}

    def close(self) -> None:
        """Frees the engine's memory on the GPU."""
        self._runner.close()
