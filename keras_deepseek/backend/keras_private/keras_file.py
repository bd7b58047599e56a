"""Loading of `.keras` files, with the modules that define their custom classes.

Keras finds a custom class only after the module that registers it was imported. Export, its child
process and the server all load files, so the rule for imports is here: the modules of this package
that the file names, and those that the caller names. No other module that a file names is imported.
"""

import importlib
import importlib.util
import os
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from zipfile import BadZipFile, ZipFile

import keras

from keras_deepseek.checks import KERAS_FILE, check_file_exists, check_sources
from keras_deepseek.errors import InvalidInputError

_NOT_CUSTOM = ("builtins", "keras")
_EXPECTED = "Expected a file that `model.save` wrote."
_LOAD_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    ImportError,
    RuntimeError,  # A member that is encrypted, and JSON that is nested too deeply.
    EOFError,
    BadZipFile,
    zlib.error,
)

_MAX_JSON_BYTES = 2**26
"""Of `config.json`, which Keras reads as a whole. That of a large model has a few megabytes."""

_MAX_COMPRESSION = 200
_SMALL_BYTES = 2**20
"""Members of a file up to this size may be compressed as well as they can be."""

_OWN_MODULE = re.compile(r'"(keras_deepseek\.(?:graph|layers|models)[\w.]*)"')


def load_keras_file(
    path: str | os.PathLike[str],
    custom_objects_from: Sequence[str | os.PathLike[str]] = (),
    *,
    is_own: bool = False,
) -> keras.Model:
    """Returns the model in a `.keras` file, not compiled.

    `custom_objects_from` are modules, by name or by `.py` file, that define its custom classes.
    `is_own` lets the code of `Lambda` layers run: this library has just written the file from a
    live model.
    """
    check_file_exists(path, KERAS_FILE)
    for source in check_sources("custom_objects_from", custom_objects_from):
        import_source(source)
    try:
        with ZipFile(path) as archive:
            if not is_own:
                _check_sizes(path, archive)
            _import_own_classes(archive)
        # Safe mode keeps code in the file from running.
        return keras.saving.load_model(path, compile=False, safe_mode=not is_own)
    except InvalidInputError:
        raise
    except _LOAD_ERRORS as error:
        # The path of a temporary file would not help.
        what = "the model that was saved for this process" if is_own else repr(os.fspath(path))
        explained = _explain(error) if is_own else f"{_explain(error)} {_EXPECTED}"
        raise InvalidInputError(f"Keras can't load {what}: {explained}") from error


def _explain(error: Exception) -> str:
    missing = re.search(r"Could not locate (?:class|function) '([^']+)'", str(error))
    if missing:
        return (
            f"{missing[1]!r} is not one of Keras's own, and no module that was named defines it. "
            "Name the one that does: custom_objects_from, on the command line "
            "--custom-objects-from."
        )
    inner = re.search(r"Exception encountered: (.+)", str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if message.endswith(":"):  # The next line has the details.
        message = " ".join(lines[:2])
    return f"{(inner[1] if inner else message).rstrip('.')}."


def import_source(source: str | os.PathLike[str]) -> None:
    """Imports a module by name or `.py` file, so that Keras finds the classes in it."""
    name = os.fspath(source)
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            _register_contents(importlib.import_module(name))
    except Exception as error:  # The user's own code runs here: it may raise anything.
        raise InvalidInputError(
            f"Custom objects can't be imported from {name!r}: {type(error).__name__}: {error}. "
            "Expected a module's name or a `.py` file."
        ) from error


def _import_file(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    existing_module = sys.modules.get(spec.name)
    if existing_module is not None and getattr(existing_module, "__file__", None) != spec.origin:
        raise ImportError(f"a module named {spec.name!r} is imported already; rename the file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    _register_contents(module)


def _register_contents(module: ModuleType) -> None:
    """Registers a module's classes and functions with Keras, which does not import them itself."""
    custom_objects = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type | FunctionType)
        and value.__module__.partition(".")[0] not in _NOT_CUSTOM
    }
    keras.saving.get_custom_objects().update(custom_objects)


def _check_sizes(path: str | os.PathLike[str], archive: ZipFile) -> None:
    """Raises an error if a small file would take much memory: a JSON file or a zip bomb."""
    for member in archive.infolist():
        what = f"{os.fspath(path)!r} can't be loaded: {member.filename!r} in it has "
        if member.filename.endswith(".json") and member.file_size > _MAX_JSON_BYTES:
            raise InvalidInputError(
                f"{what}{member.file_size} bytes. Expected at most {_MAX_JSON_BYTES}."
            )
        is_large = member.file_size > _SMALL_BYTES
        if is_large and member.file_size > _MAX_COMPRESSION * member.compress_size:
            raise InvalidInputError(
                f"{what}{member.file_size} bytes, packed into {member.compress_size}. Expected at "
                f"most {_MAX_COMPRESSION} times as many. {_EXPECTED}"
            )


def _import_own_classes(archive: ZipFile) -> None:
    """Imports the modules of this package that a `.keras` file names."""
    config = archive.read("config.json").decode("utf-8")
    for module in sorted(set(_OWN_MODULE.findall(config))):
        importlib.import_module(module)
