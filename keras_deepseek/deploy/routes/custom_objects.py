"""Transfer of a model's custom classes and functions to another process.

A class of a module is imported there by the module's name, or from the file that the user gives. A
class of the running script or notebook can't be imported. It is sent by value with `cloudpickle`,
unless the user's file or module has it as well.
"""

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import ExportError, InvalidInputError

_SCRIPT = "__main__"
_FILE_NAME = "objects.pickle"


@dataclass(frozen=True)
class CustomObjects:
    """The custom classes and functions of a model, as sources to import or objects to pickle.

    Args:
        sources: Modules, by name or by file, that define them.
        of_script: Classes and functions of the running script, by Keras's registered names.
    """

    sources: tuple[str, ...]
    of_script: dict[str, Any]


def find_custom_objects(
    model: keras.Model, config: str, sources: Sequence[str | os.PathLike[str]]
) -> CustomObjects:
    """Returns the custom classes and functions that another process needs to load a model.

    `config` is the model's configuration as JSON. The modules and `.py` files that the user passed
    take precedence over the running script.
    """
    # A registered object that the configuration names, even if no layer has it as an attribute.
    registered = keras.saving.get_custom_objects().values()
    named = {
        value for value in registered if f'"{keras.saving.get_registered_name(value)}"' in config
    }
    layers = flatten_layers(model)
    functions = {  # Activations, for example.
        value
        for layer in layers
        for value in vars(layer).values()
        if isinstance(value, FunctionType)
    }
    objects = {*map(type, layers), *named, *functions}
    modules = {
        custom_object.__module__
        for custom_object in objects
        if custom_object.__module__.split(".")[0] not in ("keras", "builtins")
    }
    files = [Path(source).resolve() for source in sources if str(source).endswith(".py")]
    passed_modules = [str(source) for source in sources if not str(source).endswith(".py")]
    # The script's objects are sent by value, and those of the files are in `files`.
    module_names = modules - {_SCRIPT, *(file.stem for file in files)}
    nowhere = sorted(name for name in module_names if _has_no_file(name))
    if nowhere:
        raise ExportError(
            f"custom layers of {', '.join(map(repr, nowhere))} can't be found by another process: "
            "the module has no file. Write them into a file, and pass it: "
            "custom_objects_from=['my_layers.py']"
        )
    script_objects = {
        keras.saving.get_registered_name(custom_object): custom_object
        for custom_object in objects
        if custom_object.__module__ == _SCRIPT and not _has(sources, custom_object.__name__)
    }
    return CustomObjects((*sorted(module_names), *passed_modules, *map(str, files)), script_objects)


def _has_no_file(name: str) -> bool:
    module = sys.modules.get(name)
    attributes = ("__file__", "__path__")
    return module is not None and all(
        getattr(module, attribute, None) is None for attribute in attributes
    )


def _has(sources: Sequence[str | os.PathLike[str]], name: str) -> bool:
    """Returns True if a module or file defines or imports a name; none of them is executed."""
    return any(name in names or "*" in names for names in map(_names_in, sources))


def _names_in(source: str | os.PathLike[str]) -> set[str]:
    """Returns the names that a source file defines or imports; `"*"` if they can't be known."""
    try:
        path = os.fspath(source)
        if not path.endswith(".py"):
            spec = importlib.util.find_spec(path)
            path = spec.origin or "" if spec is not None else ""
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, ValueError, SyntaxError, ImportError):
        return {"*"}  # It is compiled or unreadable: then the import there raises the error.
    return set(_bound_names(tree))


def _bound_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def save_objects(folder: Path, objects: dict[str, Any]) -> None:
    """Pickles classes and functions, with their code, into a folder."""
    if objects:
        names = ", ".join(sorted(custom_object.__name__ for custom_object in objects.values()))
        send(folder / _FILE_NAME, objects, f"{names}: defined in the running script or notebook")


def load_objects(folder: Path) -> None:
    """Registers with Keras the classes and functions that `save_objects` wrote, if any."""
    objects = receive(folder / _FILE_NAME)
    if objects is not None:
        names = {custom_object.__name__: custom_object for custom_object in objects.values()}
        keras.saving.get_custom_objects().update(names | objects)


def send(path: Path, value: Any, what: str) -> None:
    """Writes a value to a file by cloudpickle, with the script's code that it needs.

    `what` describes the value at the beginning of the error message.
    """
    try:
        path.write_bytes(importlib.import_module("cloudpickle").dumps(value))
    except Exception as error:  # A user's class may raise anything.
        reason = (
            "`cloudpickle` is not installed, which sends it (pip install cloudpickle)"
            if isinstance(error, ImportError)
            else f"it can't be sent there ({type(error).__name__}: {error})"
        )
        raise InvalidInputError(
            f"{what}, where another process can't import it, and {reason}. Or move it to a file "
            "and pass Exporter(..., custom_objects_from=['FILE.py'])."
        ) from error


def receive(path: Path) -> Any:
    """Reads the value that `send` wrote to a file; `None` if the file is missing."""
    if not path.exists():
        return None
    return importlib.import_module("cloudpickle").loads(path.read_bytes())
