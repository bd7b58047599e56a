"""Argument checks that all sub-packages share."""

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError

KERAS_FILE = "a `.keras` file"


def check_integer(
    name: str,
    value: Any,
    *,
    minimum: int = 1,
    maximum: int | None = None,
    default: int | None = None,
) -> int:
    """Returns a Python integer, or raises an error that names the argument.

    Args:
        name: string. The argument, as the error names it.
        value: The value.
        minimum: integer. The smallest allowed value.
        maximum: integer. The largest allowed value, or `None`.
        default: integer. The value for `None`. Without it, `None` is refused.

    Raises:
        InvalidInputError: It is not an integer, too small or too large.
    """
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        expected = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
        raise InvalidInputError(f"`{name}` must be {expected}, received {value!r}.")
    if maximum is not None and int(value) > maximum:
        raise InvalidInputError(f"`{name}` must be at most {maximum}, received {value!r}.")
    return int(value)


def check_boolean(name: str, value: Any) -> bool:
    """Returns a Python boolean; raises an `InvalidInputError` for a value of another type."""
    if not isinstance(value, bool):
        import numpy as np  # `--help` loads this module, and needs no NumPy.

        if not isinstance(value, np.bool_):
            raise InvalidInputError(f"`{name}` must be True or False, received {value!r}.")
    return bool(value)


def check_path(name: str, value: Any) -> str:
    """Returns a path as a string; raises an `InvalidInputError` if it is empty or not a path."""
    if (
        not isinstance(value, str | os.PathLike)
        or not os.fspath(value)
        or "\0" in os.fsdecode(value)
    ):
        raise InvalidInputError(f"`{name}` must be a path, received {value!r}.")
    return os.fspath(value)


def check_sources(
    name: str, value: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]
) -> tuple[str, ...]:
    """Returns module names and file paths as a tuple of strings; one alone needs no list.

    Raises:
        InvalidInputError: They are no module names or paths.
    """
    sources = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(sources, list | tuple) or not all(
        isinstance(source, str | os.PathLike) and os.fspath(source) for source in sources
    ):
        raise InvalidInputError(
            f"`{name}` must be a list of module names or files, as in ['my_layers.py']; "
            f"received {value!r}."
        )
    return tuple(os.fspath(source) for source in sources)


def check_file_path(name: str, value: Any) -> str:
    """Returns a file path as a string; the file itself may be missing.

    Raises:
        InvalidInputError: It is empty, not a path, or the path of a folder.
    """
    path = check_path(name, value)
    if Path(path).is_dir():
        raise InvalidInputError(f"`{name}` must be the path of a file, and {path!r} is a folder.")
    return path


def check_file_exists(value: str | os.PathLike[str], expected: str) -> None:
    """Raises an error before any work if a file that will be read is missing.

    Args:
        value: The path.
        expected: string. The expected kind of file, as in ``"a `.keras` file"``.

    Raises:
        InvalidInputError: There is no such file.
    """
    if not Path(value).is_file():
        raise InvalidInputError(f"No file at {os.fspath(value)!r}: expected {expected}.")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """Returns a finite Python number, or raises an error that names the argument.

    Args:
        name: string. The argument, as the error names it.
        value: The value.
        minimum: float. The smallest allowed value.
        maximum: float. The largest allowed value.
        above: float. The value must be greater than this.
        below: float. The value must be less than this.

    Raises:
        InvalidInputError: It is not a finite number, or out of these bounds.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and minimum <= value and above < value < below:
        if value > maximum:
            raise InvalidInputError(f"`{name}` must be at most {maximum:g}, received {value!r}.")
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("of at least", minimum), ("above", above), ("below", below))
        if math.isfinite(bound)
    ]
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
    raise InvalidInputError(f"`{name}` must be {expected}, received {value!r}.")
