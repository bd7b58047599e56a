"""From what a user names to what computes it. Each runtime is imported only where it is needed."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.bundle import Bundle, is_bundle
from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference.executors.executor import Executor

_EXPECTED = (
    "Expected a built keras.Model, the path of a bundle (the folder that an export wrote), the "
    "path of a `.keras` file, or an object with `signature` and `run`."
)


def open_executor(
    model: Any, custom_objects_from: Sequence[str | os.PathLike[str]] = ()
) -> Executor:
    """Returns what computes `model`.

    Args:
        model: A built `keras.Model`, the path of a bundle or of a `.keras` file, or an `Executor`.
        custom_objects_from: Modules, by name or by `.py` file, that define the custom classes of a
            `.keras` file. Defaults to `()`.

    Raises:
        InvalidInputError: It is none of these.
        BundleError: The bundle is damaged.
        MissingExtraError: The runtime that the bundle needs is not installed.
        NotSupportedError: The bundle holds a format that can't be served.
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
    if is_bundle(path):
        return _open_bundle(Bundle.open(path), custom_objects_from)
    if path.suffix == ".keras" and path.is_file():
        return _load_keras_file(path, custom_objects_from)
    state = (
        "it does not exist" if not path.exists() else "it is neither a bundle nor a `.keras` file"
    )
    raise InvalidInputError(f"Can't serve {str(path)!r}: {state}. {_EXPECTED}")


def _open_bundle(bundle: Bundle, custom_objects_from: Sequence[str | os.PathLike[str]]) -> Executor:
    verification = bundle.manifest.verification
    if verification.state == "failed":
        warnings.warn(
            f"The bundle at {str(bundle.path)!r} computes something else than its model: "
            f"{verification.reason}. Export it again without verify='warn'.",
            stacklevel=2,
        )
    match bundle.manifest.format:
        case "onnx":
            from keras_deepseek.inference.executors.onnx_runtime import OnnxRuntime

            return OnnxRuntime(bundle)
        case "savedmodel":
            from keras_deepseek.inference.executors.saved_model import SavedModel

            return SavedModel(bundle)
        case "keras":
            return _load_keras_file(bundle.entry, custom_objects_from)
        case other:
            raise NotSupportedError(
                f"The bundle at {str(bundle.path)!r} holds {other!r}, which can't be served. "
                "Export the model as onnx or savedmodel."
            )


def _load_keras_file(path: Path, custom_objects_from: Sequence[str | os.PathLike[str]]) -> Executor:
    from keras_deepseek.inference.executors.keras_model import KerasModel

    return KerasModel.load(path, custom_objects_from)
