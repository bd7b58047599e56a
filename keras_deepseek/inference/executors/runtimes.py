"""Executors of exported models. Each needs its runtime alone, and no Keras."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.backend.runtimes import litert_model, openvino_model
from keras_deepseek.backend.runtimes.saved_model import limit_threads, load_saved_model
from keras_deepseek.backend.runtimes.tensorrt_engine import libraries
from keras_deepseek.backend.runtimes.tensorrt_engine.engine_runner import EngineRunner
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import import_library, read_flavor
from keras_deepseek.errors import InvalidInputError, MissingExtraError, NotSupportedError
from keras_deepseek.inference.executors.executor import (
    Executor,
    RuntimeTensor,
    check_names,
    make_signature,
)
from keras_deepseek.inference.protocols.tensor_bytes import string_array

_SAVED_MODEL_ADVICE = (
    "Save it with a signature of tensors of numbers, booleans or strings whose first axis is free, "
    "as in tf.TensorSpec([None, 28, 28], tf.float32)."
)

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""In the order of preference. Those that the installed ONNX Runtime lacks are left out."""

_ONNX_DTYPES = {"float": "float32", "double": "float64", "string": "object"}
"""NumPy's name by ONNX Runtime's, where the two differ."""

_ONNX_ADVICE = (
    "Export it with tensors alone whose first axis is free: `dynamic_axes={'x': {0: 'rows'}}` of "
    "torch.onnx.export, `options={'zipmap': False}` of skl2onnx."
)


class _RuntimeExecutor(Executor):
    """Base class of the executors below, which hold their signature."""

    _signature: Signature

    @property
    def signature(self) -> Signature:
        return self._signature


class _FileExecutor(_RuntimeExecutor):
    """Base class of the executors that open the entry of a bundle by its path."""

    @abstractmethod
    def __init__(self, path: Path, signature: Signature, threads: int | None = None) -> None: ...

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> Self:
        return cls(bundle.entry, bundle.manifest.signature, threads)


class OpenVINOModel(_FileExecutor):
    """Runs a bundle's OpenVINO `.xml` file on the CPU, as the export's verification does."""

    def __init__(self, path: Path, signature: Signature, threads: int | None = None) -> None:
        self._model = openvino_model.OpenVINOModel(path, "to serve OpenVINO", threads)
        check_names(path, self._model.input_names, self._model.output_names, signature)
        self._signature = signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._model.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}


class LiteRTModel(_FileExecutor):
    """Runs a bundle's `.tflite` file on the CPU, as the export's verification does."""

    def __init__(self, path: Path, signature: Signature, threads: int | None = None) -> None:
        self._model = litert_model.LiteRTModel(path, "to serve LiteRT", threads)
        check_names(path, self._model.input_names, self._model.output_names, signature)
        self._signature = signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._model.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}


class SavedModel(_FileExecutor):
    """Runs the `serving_default` signature of a SavedModel's folder, or the only one.

    It needs TensorFlow, but not Keras. By default the signature is read off the SavedModel.
    """

    def __init__(
        self, path: Path, signature: Signature | None = None, threads: int | None = None
    ) -> None:
        if threads is not None:
            limit_threads(threads)
        self._infer = load_saved_model(path, takes_only_one=signature is None)
        if signature is None:
            inputs, outputs = (
                [
                    RuntimeTensor(name, shape, "object" if dtype == "string" else dtype)
                    for name, shape, dtype in tensors
                ]
                for tensors in (self._infer.inputs, self._infer.outputs)
            )
            signature = make_signature(path, inputs, outputs, _SAVED_MODEL_ADVICE)
        self._signature = signature

    @classmethod
    def from_path(
        cls,
        path: Path,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "SavedModel":
        return cls(path, threads=threads)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._infer(inputs)  # TensorFlow has its own order of outputs.
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}


class TensorRTEngine(_RuntimeExecutor):
    """Runs a bundle's engine of TensorRT or TensorRT-RTX on the current GPU.

    Batches must fit one of the engine's profiles.
    """

    def __init__(self, bundle: Bundle) -> None:
        if not libraries.count_gpus():
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

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Computes a batch. Raises `NotSupportedError` if no profile has the batch's shape."""
        outputs = self._runner.run(inputs)
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}

    def close(self) -> None:
        """Frees the engine's memory on the GPU."""
        self._runner.close()


class OnnxRuntime(_FileExecutor):
    """Runs an ONNX file, by default with the signature that is read off the file."""

    def __init__(
        self, path: Path, signature: Signature | None = None, threads: int | None = None
    ) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnxruntime", "to serve ONNX") from error

        available = onnxruntime.get_available_providers()
        providers = [name for name in _PROVIDERS if name in available]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # With 0 ONNX Runtime chooses the number.
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers)
        except Exception as error:  # ONNX Runtime's errors have no common class.
            raise InvalidInputError(
                f"ONNX Runtime can't load {str(path)!r}: {error} Export it again."
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if signature is None:
            signature = make_signature(path, _describe(inputs), _describe(outputs), _ONNX_ADVICE)
        else:
            check_names(
                path,
                [tensor.name for tensor in inputs],
                [tensor.name for tensor in outputs],
                signature,
            )
        self._invalid_argument = InvalidArgument
        self._signature = signature
        self._output_names = [spec.name for spec in signature.outputs]
        self._text_inputs = [spec.name for spec in signature.inputs if spec.dtype == "object"]
        self._text_outputs = [spec.name for spec in signature.outputs if spec.dtype == "object"]

    @classmethod
    def from_path(
        cls,
        path: Path,
        custom_objects_from: Sequence[str | PathLike[str]] = (),
        threads: int | None = None,
    ) -> "OnnxRuntime":
        return cls(path if path.is_file() else path / "model.onnx", threads=threads)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Computes a batch. Strings are returned as `bytes` of UTF-8."""
        if self._text_inputs:
            inputs = inputs | {name: _decode(inputs[name]) for name in self._text_inputs}
        try:
            arrays = self._session.run(self._output_names, inputs)
        except self._invalid_argument as error:
            raise InvalidInputError(f"The model refuses the inputs: {error}") from error
        outputs = dict(zip(self._output_names, arrays, strict=True))
        for name in self._text_outputs:
            outputs[name] = _encode(outputs[name])
        return outputs


def _describe(tensors: Sequence[Any]) -> list[RuntimeTensor]:
    return [
        RuntimeTensor(
            tensor.name,
            # ONNX Runtime reports no shape for an unknown rank and for a scalar alike.
            [size if isinstance(size, int) else None for size in tensor.shape or ()],
            _onnx_dtype(tensor.type),
        )
        for tensor in tensors
    ]


def _onnx_dtype(kind: str) -> str:
    match = re.fullmatch(r"tensor\((\w+)\)", kind)
    # ONNX Runtime's Python API takes no bfloat16 arrays.
    if match is None or match[1] == "bfloat16":
        return kind
    return _ONNX_DTYPES.get(match[1], match[1])


def _decode(array: Array) -> Array:
    """Decodes `bytes` into an array of `str`, since ONNX Runtime would read their `repr`."""
    values = [value.decode() if isinstance(value, bytes) else value for value in array.flat]
    return string_array(values).reshape(array.shape)


def _encode(array: Array) -> Array:
    return string_array([value.encode() for value in array.flat]).reshape(array.shape)
