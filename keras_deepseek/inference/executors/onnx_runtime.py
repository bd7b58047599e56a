"""A bundle that holds an ONNX file: ONNX Runtime alone, without any framework."""

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.artifacts.signature import Array, Signature

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""In the order of preference; those that the installed ONNX Runtime lacks are passed over."""


class OnnxRuntime:
    """Runs a bundle's ONNX file.

    Args:
        bundle: `Bundle` of the format `"onnx"`.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        InvalidInputError: ONNX Runtime can't load the file, or its names differ from the
            manifest's.
    """

    def __init__(self, bundle: Bundle) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnxruntime", "to serve ONNX") from error

        self._signature = bundle.manifest.signature
        self._output_names = [spec.name for spec in self._signature.outputs]
        available = onnxruntime.get_available_providers()
        providers = [name for name in _PROVIDERS if name in available]
        try:
            self._session = onnxruntime.InferenceSession(str(bundle.entry), providers=providers)
        except Exception as error:  # ONNX Runtime's errors share no class of their own.
            raise InvalidInputError(
                f"ONNX Runtime can't load {str(bundle.entry)!r}: {error} Export it again."
            ) from error
        self._check_names(bundle)

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and the outputs."""
        return self._signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Returns arrays by output name."""
        outputs = self._session.run(self._output_names, inputs)
        return dict(zip(self._output_names, outputs, strict=True))

    def _check_names(self, bundle: Bundle) -> None:
        found = (
            {tensor.name for tensor in self._session.get_inputs()},
            {tensor.name for tensor in self._session.get_outputs()},
        )
        expected = ({spec.name for spec in self._signature.inputs}, set(self._output_names))
        if found[0] != expected[0] or not expected[1] <= found[1]:
            raise InvalidInputError(
                f"{str(bundle.entry)!r} has the inputs {sorted(found[0])} and the outputs "
                f"{sorted(found[1])}; its manifest says {sorted(expected[0])} and "
                f"{sorted(expected[1])}. Export it again."
            )
