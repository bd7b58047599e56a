"""Opens the executor of a model: of a Keras model, of a path, or of an object that is one already.

A runtime is imported only when a model needs it.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.executors.executor import Executor, as_executor
from keras_deepseek.inference.executors.model_path import kind_of_model
from keras_deepseek.inference.executors.registry import find_executor_class

_logger = logging.getLogger(__name__)

_PATH = (
    "the path of a bundle (the folder that an export wrote), of a SavedModel, of an `.onnx` or of "
    "a `.keras` file"
)


def open_executor(
    model: Any,
    custom_objects_from: Sequence[str | os.PathLike[str]] = (),
    threads: int | None = None,
) -> Executor:
    """Returns the executor of a model.

    The model is a built `keras.Model`; the path of a bundle, of a SavedModel's folder, of an
    `.onnx` file or a folder with `model.onnx`, or of a `.keras` file; or an object with `signature`
    and `run`. `custom_objects_from` are modules, by name or by `.py` file, that define the custom
    classes of a `.keras` file. `threads` is the number of CPU threads that compute a batch.
    """
    if isinstance(model, str | os.PathLike):
        return _open_path(Path(model), custom_objects_from, threads)
    if _is_of_keras(model):
        from keras_deepseek.inference.executors.keras_model import KerasModel

        return KerasModel(model, threads)
    executor = as_executor(model)
    if executor is None:
        raise InvalidInputError(
            f"Can't serve {type(model).__name__} {model!r:.100}. Expected a built keras.Model, "
            f"{_PATH}, or an object with `signature` and `run`."
        )
    return executor


def _is_of_keras(model: Any) -> bool:
    """Returns true for objects of Keras's classes, without importing Keras."""
    return any(parent.__module__.split(".")[0] == "keras" for parent in type(model).__mro__)


def _open_path(
    path: Path, custom_objects_from: Sequence[str | os.PathLike[str]], threads: int | None
) -> Executor:
    kind = kind_of_model(path)
    if kind is None:
        state = "no model was found there" if path.exists() else "it does not exist"
        raise InvalidInputError(f"Can't serve {str(path)!r}: {state}. Expected {_PATH}.")
    bundle = Bundle.open(path) if kind == "bundle" else None
    _logger.info("Loads %s.", path)
    if bundle:
        return _open_bundle(bundle, custom_objects_from, threads)
    return find_executor_class(kind).from_path(path, custom_objects_from, threads)


def _open_bundle(
    bundle: Bundle, custom_objects_from: Sequence[str | os.PathLike[str]], threads: int | None
) -> Executor:
    verification = bundle.manifest.verification
    if verification.state == "failed":
        warnings.warn(
            f"The bundle at {str(bundle.path)!r} does not compute what its model computed: "
            f"{verification.reason}. Export it again without verify='warn'.",
            stacklevel=2,
        )
    executor_class = find_executor_class(bundle.manifest.format)
    return executor_class.from_bundle(bundle, custom_objects_from, threads)
