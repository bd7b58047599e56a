"""The public names and signatures, as `public_api.txt` beside this file holds them.

What changes them on purpose writes the file anew:

    python tests/house/public_api_test.py > tests/house/public_api.txt
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import keras_deepseek

FROZEN = Path(__file__).with_name("public_api.txt")

NEWER_LAYERS = {"ContrastLimitedAdaptiveHistogramEqualization"}
"""Keras layers that the oldest supported Keras release lacks. The frozen file leaves them out."""


def public_api() -> list[str]:
    """Returns a line for each public name; what Keras defines is a name without a signature."""
    lines = []
    for name in keras_deepseek.__all__:
        room = getattr(keras_deepseek, name)
        lines.append(f"keras_deepseek.{name}")
        if isinstance(room, ModuleType):
            for member in sorted(set(room.__all__) - NEWER_LAYERS):
                lines.extend(_describe(f"{room.__name__}.{member}", getattr(room, member)))
    return sorted(lines)


def _describe(path: str, value: Any) -> Iterator[str]:
    if not _is_ours(value):
        yield path
    elif inspect.isclass(value) and value.__name__ != path.rpartition(".")[2]:
        yield f"{path} = {value.__name__}"
    elif inspect.isclass(value):
        yield path + (_signature(value.__init__) if _is_ours(value.__init__) else "")
        for name in _members(value):
            member = inspect.getattr_static(value, name)
            function = getattr(member, "__func__", member)
            yield f"{path}.{name}" + (_signature(function) if inspect.isfunction(function) else "")
    else:
        yield path + (_signature(value) if callable(value) else "")


def _members(value: type) -> list[str]:
    """Returns the public methods, properties and attributes that our own classes define.

    The fields of a dataclass stand in its signature.
    """
    names = {name for base in value.__mro__ if _is_ours(base) for name in vars(base)}
    fields = getattr(value, "__dataclass_fields__", {})
    return sorted(name for name in names if not name.startswith("_") and name not in fields)


def _is_ours(value: Any) -> bool:
    # A dataclass's `__init__` is made by Python, for our class.
    return (getattr(value, "__module__", None) or "").startswith("keras_deepseek")


def _signature(function: Any) -> str:
    """Returns names, kinds and defaults: annotations print differently from Python to Python."""
    parameters = [
        _without_annotation(parameter)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    ]
    return str(inspect.Signature(parameters))


class _Text:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _without_annotation(parameter: inspect.Parameter) -> inspect.Parameter:
    default = parameter.default
    if inspect.isroutine(default):
        default = _Text(f"{default.__module__}.{default.__qualname__}")
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


def test_public_names_and_signatures_are_the_frozen_ones():
    frozen = FROZEN.read_text(encoding="utf-8").splitlines()
    current = public_api()
    gone = sorted(set(frozen) - set(current))
    new = sorted(set(current) - set(frozen))
    assert current == frozen, f"\ngone: {gone}\nnew: {new}\n{__doc__}"


if __name__ == "__main__":
    print("\n".join(public_api()))
