"""Opens the executor of a model: of a Keras model, of a path, or of an object that is one already.

A runtime is imported only when a model needs it. Other packages add executor classes by an entry
point of the group `keras_deepseek.executors`, named after the bundle format that they run.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from keras_deepseek.artifacts.bundle import Bundle, is_bundle
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference.executors.executor import Executor, as_executor

_logger = logging.getLogger(__name__)

_PATH = (
    "the path of a bundle (the folder that an export wrote), of a SavedModel, of an `.onnx` or of "
    "a `.keras` file, or of the preset of a language model (a folder with a `config.json`)"
)

_ENTRY_POINT_GROUP = "keras_deepseek.executors"

_ROOM = "keras_deepseek.inference.executors"

BUILT_IN = {
    "keras": f"{_ROOM}.keras_model:KerasModel",
    "litert": f"{_ROOM}.runtimes:LiteRTModel",
    "onnx": f"{_ROOM}.runtimes:OnnxRuntime",
    "openvino": f"{_ROOM}.runtimes:OpenVINOModel",
    "savedmodel": f"{_ROOM}.runtimes:SavedModel",
    "tensorrt": f"{_ROOM}.runtimes:TensorRTEngine",
}
"""`module:class` by format. A module is imported when a model of its format is opened."""

Kind = Literal["bundle", "keras", "onnx", "preset", "savedmodel"]

_SAVED_MODEL_NAMES = ("saved_model.pb", "saved_model.pbtxt")

PRESET_CONFIG = "config.json"
"""The file that a preset, a model in the Hugging Face format, has and other models lack."""

_LANGUAGE_MODEL = ("keras_deepseek.models.causal_lm", "CausalLM")
"""Module and name of the class of live language models, which is not imported to ask for it."""


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


def is_language_model(model: Any) -> bool:
    """Returns True for the preset of a model, and for a live `CausalLM`, ours or KerasHub's.

    They have no executor, since they take texts: `text_model` opens them.
    """
    if isinstance(model, str | os.PathLike):
        return kind_of_model(Path(model)) == "preset"
    keras_hub = sys.modules.get("keras_hub")
    if keras_hub is not None and isinstance(model, keras_hub.models.CausalLM):
        return True
    classes = type(model).__mro__
    return _LANGUAGE_MODEL in ((base.__module__, base.__name__) for base in classes)


def _is_of_keras(model: Any) -> bool:
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


def find_executor_class(name: str) -> type[Executor]:
    """Returns the executor class of a format. A built-in format can't be replaced."""
    if name in BUILT_IN:
        built_in: type[Executor] = EntryPoint(name, BUILT_IN[name], _ENTRY_POINT_GROUP).load()
        return built_in
    points = {point.value: point for point in entry_points(group=_ENTRY_POINT_GROUP, name=name)}
    if not points:
        installed = {point.name for point in entry_points(group=_ENTRY_POINT_GROUP)}
        raise NotSupportedError(
            f"No executor is registered for the format {name!r}. Export the model as "
            f"{', '.join(sorted({*BUILT_IN, *installed}))}, or install a package that registers an "
            f"executor for {name!r} under the entry point group {_ENTRY_POINT_GROUP!r}."
        )
    if len(points) > 1:
        raise InvalidInputError(
            f"Several executors are registered for the format {name!r}: {sorted(points)}. "
            "Uninstall all but one of their packages."
        )
    return _load(*points.values())


def _load(point: EntryPoint) -> type[Executor]:
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise NotSupportedError(
            f"The executor {point.value!r} of the format {point.name!r} can't be imported: {error}."
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Executor)):
        raise InvalidInputError(
            f"The entry point {point.value!r} of the format {point.name!r} is no subclass of "
            f"keras_deepseek.inference.Executor: {loaded!r:.100}."
        )
    return loaded


def kind_of_model(path: Path) -> Kind | None:
    """Returns the kind of model at a path, or `None` if there is none.

    A folder may be a bundle, a SavedModel, a preset, or hold `model.onnx`; a file `.keras` or
    `.onnx`.
    """
    if path.is_file():
        kinds: dict[str, Kind] = {".keras": "keras", ".onnx": "onnx"}
        return kinds.get(path.suffix)
    if is_bundle(path):
        return "bundle"
    if any((path / name).is_file() for name in _SAVED_MODEL_NAMES):
        return "savedmodel"
    if (path / "model.onnx").is_file():
        return "onnx"
    return "preset" if (path / PRESET_CONFIG).is_file() else None


def stamp_of(path: Path) -> object:
    """Returns a value that changes when any file in a folder changes, or `None` on an error.

    The value holds names, sizes and times of change, and whether the files may be read. No file is
    opened.
    """
    try:
        files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError:  # The folder is being removed, or can't be read.
        return None
    return tuple(
        (str(file), state.st_size, state.st_mtime_ns, os.access(file, os.R_OK))
        for file, state in files
    )
