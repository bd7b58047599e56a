"""What kind of model stands at a path, and whether it has changed: before any runtime is loaded."""

from pathlib import Path
from typing import Literal

from keras_deepseek.artifacts.bundle import MANIFEST_NAME, is_bundle

Kind = Literal["bundle", "keras", "onnx", "savedmodel"]

_SAVED_MODEL_NAMES = ("saved_model.pb", "saved_model.pbtxt")
_ONNX_NAME = "model.onnx"


def kind_of_model(path: Path) -> Kind | None:
    """Returns what can be served of a path; `None` where nothing can.

    A folder may be a bundle, a SavedModel, or hold `model.onnx`; a file may be a `.keras` or an
    `.onnx` file.

    Args:
        path: `pathlib.Path`.
    """
    if path.is_file():
        kinds: dict[str, Kind] = {".keras": "keras", ".onnx": "onnx"}
        return kinds.get(path.suffix)
    if is_bundle(path):
        return "bundle"
    if any((path / name).is_file() for name in _SAVED_MODEL_NAMES):
        return "savedmodel"
    return "onnx" if (path / _ONNX_NAME).is_file() else None


def onnx_file(path: Path) -> Path:
    """Returns the file of a path of the kind `"onnx"`.

    Args:
        path: `pathlib.Path` of the file, or of its folder.
    """
    return path if path.is_file() else path / _ONNX_NAME


def stamp_of(path: Path) -> object:
    """Returns what is another when a folder's model is another.

    A bundle comes as a whole, so its manifest tells. The files of others come one after the other,
    and all of them tell.

    Args:
        path: `pathlib.Path` of the folder.
    """
    try:
        if is_bundle(path):
            return (path / MANIFEST_NAME).stat().st_mtime_ns
        files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError:  # It is going.
        return None
    return tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in files)
