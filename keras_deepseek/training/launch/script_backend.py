"""The backend that a script runs on, found before it runs."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError

_VARIABLE = "KERAS_BACKEND"
_PACKAGE = "keras_deepseek"
_LOADS_KERAS = ("keras", "keras_hub", "tensorflow")
_WITHOUT_KERAS = ("artifacts", "chat", "checks", "errors", "operator", "studio", "text")
"""The modules of this package that don't load Keras."""


def find_backend(script: str, flag: str | None) -> tuple[str, str]:
    """Returns the backend of a launched script, and what has chosen it.

    As for the script alone, `KERAS_BACKEND` comes first, then a line of the script that sets it,
    then Keras's settings file. `flag` is that of the launcher, which has set `KERAS_BACKEND`.

    Raises:
        InvalidInputError: The script sets another backend than the flag.
    """
    named, source = os.environ.get(_VARIABLE), _VARIABLE if flag is None else "--backend"
    for line, name, is_default in _read_settings(script):
        if is_default and named is not None:
            continue
        if flag is not None and name != flag:
            raise InvalidInputError(
                f"--backend {flag} contradicts line {line} of {script!r}, which always sets "
                f"{_VARIABLE} to {name!r}: leave the flag out, or write "
                f"os.environ.setdefault({_VARIABLE!r}, {name!r}) there."
            )
        named, source = name, f"line {line} of {Path(script).name}"
    if named is not None:
        return named, source
    if installed := backend.installed_default():
        return installed, "the first that is installed"
    return backend.chosen(), "Keras's own choice"


def _read_settings(script: str) -> Iterator[tuple[int, str, bool]]:
    """Yields the lines of a script that set its backend before Keras is imported.

    Each has its number, the backend, and True if it only sets a default. Lines inside of functions
    and conditions are not read: a process that runs them compares what they have chosen.
    """
    try:
        body = ast.parse(Path(script).read_bytes()).body
    except (OSError, SyntaxError, ValueError):  # The plan says what is wrong.
        return
    for statement in body:
        match statement:
            case ast.Import(names=names) if _loads_keras(*(alias.name for alias in names)):
                return
            case ast.ImportFrom(module=str(module), names=names) if _loads_keras(
                *(f"{module}.{alias.name}" for alias in names)
            ):
                return
            case ast.Assign(
                targets=[ast.Subscript(value=target, slice=ast.Constant(value="KERAS_BACKEND"))],
                value=ast.Constant(value=str(name)),
            ) if _is_environment(target):
                yield statement.lineno, name, False
            case ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(value=target, attr="setdefault"),
                    args=[ast.Constant(value="KERAS_BACKEND"), ast.Constant(value=str(name))],
                )
            ) if _is_environment(target):
                yield statement.lineno, name, True


def _loads_keras(*modules: str) -> bool:
    for module in modules:
        package, *submodules = module.split(".")
        if package in _LOADS_KERAS:
            return True
        if package == _PACKAGE and submodules and submodules[0] not in _WITHOUT_KERAS:
            return True
    return False


def _is_environment(node: ast.expr) -> bool:
    """Returns True for `os.environ` and `environ`."""
    match node:
        case ast.Attribute(attr="environ") | ast.Name(id="environ"):
            return True
    return False
