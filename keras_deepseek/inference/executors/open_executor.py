"""From what a user names to what computes it. Each runtime is imported only where it is needed."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.executors.model_path import kind_of_model, onnx_file

_EXPECTED = (
    "Expected a built keras.Model, the path of a bundle (the folder that an export wrote), of a "
    "SavedModel, of an `.onnx` or of a `.keras` file, or an object with `signature` and `run`."
)


def open_executor(
    model: Any, custom_objects_from: Sequence[str | os.PathLike[str]] = ()
) -> Executor:
    """Returns what computes `model`.

    Args:
        model: A built `keras.Model`; the path of a bundle, of a SavedModel's folder, of an `.onnx`
            file or a folder with `model.onnx`, or of a `.keras` file; or an `Executor`.
        custom_objects_from: Modules, by name or by `.py` file, that define the custom classes of a
            `.keras` file. Defaults to `()`.

    Raises:
        InvalidInputError: It is none of these.
        BundleError: The bundle is damaged.
        MissingExtraError: The runtime that the bundle needs is not installed.
        NotSupportedError: The bundle holds a format that can't be served, or not on this machine;
            or the model does not take any number of rows.
    """
    if isinstance(model, str | os.PathLike):
        return _open_path(Path(model), custom_objects_from)
    if _is_of_keras(model):
        from keras_deepseek.inference.executors.keras_model import KerasModel

        return KerasModel(model)
    if isinstance(model, Executor) and not isinstance(model, type):
        return model
    raise InvalidInputError(f"Can't serve {type(model).__name__} {model!r:.100}. {_EXPECTED}")


def _is_of_keras(model: Any) -> bool:
    """Whether the object is of a class of Keras, found without importing Keras."""
    return any(parent.__module__.split(".")[0] == "keras" for parent in type(model).__mro__)


def _open_path(path: Path, custom_objects_from: Sequence[str | os.PathLike[str]]) -> Executor:
    match kind_of_model(path):
        case "bundle":
            return _open_bundle(Bundle.open(path), custom_objects_from)
        case "keras":
            return _load_keras_file(path, custom_objects_from)
        case "onnx":
            return _open_onnx(onnx_file(path))
        case "savedmodel":
            return _open_saved_model(path)
    state = "no model stands there" if path.exists() else "it does not exist"
    raise InvalidInputError(f"Can't serve {str(path)!r}: {state}. {_EXPECTED}")


def _open_bundle(bundle: Bundle, custom_objects_from: Sequence[str | os.PathLike[str]]) -> Executor:
    verification = bundle.manifest.verification
    if verification.state == "failed":
        warnings.warn(
            f"The bundle at {str(bundle.path)!r} computes something else than its model: "
            f"{verification.reason}. Export it again without verify='warn'.",
            stacklevel=2,
        )
    signature = bundle.manifest.signature
    match bundle.manifest.format:
        case "onnx":
            return _open_onnx(bundle.entry, signature)
        case "savedmodel":
            return _open_saved_model(bundle.entry, signature)
        case "openvino":
            from keras_deepseek.inference.executors.openvino_model import OpenVINOModel

            return OpenVINOModel(bundle.entry, signature)
        case "tensorrt":
            from keras_deepseek.inference.executors.tensorrt_engine import TensorRTEngine

            return TensorRTEngine(bundle)
        case "keras":
            return _load_keras_file(bundle.entry, custom_objects_from)
        case other:
            raise NotSupportedError(
                f"The bundle at {str(bundle.path)!r} holds {other!r}, which can't be served. "
                "Export the model as onnx, savedmodel, openvino or tensorrt."
            )


def _open_onnx(path: Path, signature: Signature | None = None) -> Executor:
    from keras_deepseek.inference.executors.onnx_runtime import OnnxRuntime

    return OnnxRuntime(path, signature)


def _open_saved_model(path: Path, signature: Signature | None = None) -> Executor:
    from keras_deepseek.inference.executors.saved_model import SavedModel

    return SavedModel(path, signature)


def _load_keras_file(path: Path, custom_objects_from: Sequence[str | os.PathLike[str]]) -> Executor:
    from keras_deepseek.inference.executors.keras_model import KerasModel

    return KerasModel.load(path, custom_objects_from)
