"""Docstrings of classes that share arguments, inputs and outputs with a base class."""

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

Class = TypeVar("Class", bound=type)

_SHARED = ("Args", "Call arguments", "Returns", "Raises")
_SECTION = re.compile(r"^([A-Z][a-z ]+):\n", re.MULTILINE)
_ENTRY = re.compile(r"^    (\*{0,2}\w+):.*\n(?:^     .*\n)*", re.MULTILINE)


def complete_docstring(base: type) -> Callable[[Class], Class]:
    """Returns a decorator that adds to a class's docstring what that of `base` says.

    It adds the sections `Args`, `Call arguments`, `Returns` and `Raises` that the class lacks. If
    the class has `Args`, it adds the missing ones of the parameters that the class takes.
    """

    def complete(cls: Class) -> Class:
        if cls.__doc__ and base.__doc__:  # `python -OO` has no docstrings.
            (summary, own), (_, shared) = _split(cls.__doc__), _split(base.__doc__)
            taken = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
            args = _split_entries(own.get("Args", ""))
            for name, text in _split_entries(shared.get("Args", "")).items():
                if name.strip("*") in taken:
                    args.setdefault(name, text)
            args |= {name: args.pop(name) for name in tuple(args) if name.startswith("**")}
            sections = {name: shared[name] for name in _SHARED if name in shared}
            sections |= own | {"Args": "".join(args.values()) + "\n"}
            cls.__doc__ = summary + "".join(f"{name}:\n{x}" for name, x in sections.items())
        return cls

    return complete


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """Splits a docstring into the text before its first section, and its sections by title."""
    summary, *parts = _SECTION.split(inspect.cleandoc(docstring) + "\n\n")
    return summary, dict(zip(parts[::2], parts[1::2], strict=True))


def _split_entries(section: str) -> dict[str, str]:
    return {entry[1]: entry[0] for entry in _ENTRY.finditer(section)}
