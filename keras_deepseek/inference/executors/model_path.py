"""Finds the kind of model at a path, and whether its files changed, without loading a runtime."""

import os
from pathlib import Path
from typing import Literal

from keras_deepseek.artifacts.bundle import is_bundle

Kind = Literal["bundle", "keras", "onnx", "savedmodel"]

_SAVED_MODEL_NAMES = ("saved_model.pb", "saved_model.pbtxt")
_ONNX_NAME = "model.onnx"


def kind_of_model(path: Path) -> Kind | None:
    """Returns the kind of model at a path, or `None` if there is none.

    A folder may be a bundle, a SavedModel, or hold `model.onnx`; a file `.keras` or `.onnx`.
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
    """Returns the `.onnx` file of a path of the kind `"onnx"`, which is the file or its folder."""
    return path if path.is_file() else path / _ONNX_NAME


def stamp_of(path: Path) -> object:
    """Returns a value that changes when any file in a folder changes, or `None` on an error.

    It holds the names, sizes and times of change, and whether the files may be read. It opens none.
    """
    try:
        files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    except OSError:  # The folder is being removed, or can't be read.
        return None
    return tuple(
        (str(file), state.st_size, state.st_mtime_ns, os.access(file, os.R_OK))
        for file, state in files
    )
