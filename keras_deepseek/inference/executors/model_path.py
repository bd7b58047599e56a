"""What kind of model stands at a path, and whether it has changed: before any runtime is loaded."""

import os
from pathlib import Path
from typing import Literal

from keras_deepseek.artifacts.bundle import is_bundle

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
    """Returns what is another when a folder's model is another: all of its files tell.

    They are not opened: their names, their sizes, when they were written, and whether they may be
    read.

    Args:
        path: `pathlib.Path` of the folder.
    """
    try:
        files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError:  # It is going, or can't be read.
        return None
    return tuple(
        (str(file), state.st_size, state.st_mtime_ns, os.access(file, os.R_OK))
        for file, state in files
    )
