"""A bundle that holds an engine of TensorRT or of TensorRT-RTX: on an NVIDIA GPU alone."""

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes.tensorrt_engine import visible_gpus
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import EngineRunner
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import import_library, read_flavor
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.inference.executors.found_signature import check_names


class TensorRTEngine:
    """Runs a bundle's engine on the current GPU, with a stream and memory of its own.

    It takes the batches that the engine's profiles have room for.

    Args:
        bundle: `Bundle` of the format `"tensorrt"`.

    Raises:
        NotSupportedError: No GPU is visible, `cuda-python` is not installed, or the engine is for
            another GPU or release.
        MissingExtraError: The library that built the engine is not installed.
        InvalidInputError: The manifest does not say which that is, or the engine's names differ
            from the manifest's.
        ExportError: CUDA refuses a call.
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

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name.

        Args:
            inputs: dict of arrays by input name.

        Raises:
            NotSupportedError: The engine has no profile for such a batch.
            ExportError: The GPU failed to run it.
        """
        outputs = self._runner.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}

    def close(self) -> None:
        """Gives back what it has of the GPU."""
        self._runner.close()
