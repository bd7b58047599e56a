"""`Args:` names the arguments of the signature, and "Defaults to `x`" says what stands there."""

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

SECTION = re.compile(r"^Args:\n((?:    .*\n|\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^    \*{0,2}(\w+): (.*(?:\n     .*)*)", re.MULTILINE)
DEFAULT = re.compile(r"[Dd]efaults\s+to\s+`([^`]*)`")


def documented_arguments(documentation: str | None) -> dict[str, str] | None:
    """Returns what `Args:` says of each argument, or `None` where there is no such section."""
    section = SECTION.search(inspect.cleandoc(documentation or "") + "\n")
    return dict(ENTRY.findall(section[1])) if section else None


def disagreements(function: Callable[..., Any], documented: dict[str, str]) -> list[str]:
    """Returns in what an `Args:` section differs from the signature."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    }
    if "options" in documented and "options" not in parameters:
        # `show_options` shows `**options` one by one. Their class documents them.
        documented = {name: text for name, text in documented.items() if name != "options"}
        parameters = {name: parameters[name] for name in documented if name in parameters}
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    problems = [f"`{name}` is not documented" for name in required - set(documented)]
    problems += [f"`{name}` does not exist" for name in set(documented) - set(parameters)]
    for name, text in documented.items():
        stated = DEFAULT.search(text)
        if stated and name in parameters and not _is(parameters[name].default, stated[1]):
            problems.append(f"`{name}` defaults to {parameters[name].default!r}, not {stated[1]}")
    return sorted(problems)


def _is(default: object, stated: str) -> bool:
    try:
        value = ast.literal_eval(stated)
    except (SyntaxError, ValueError):
        names = (getattr(default, "__qualname__", ""), getattr(default, "__module__", ""))
        return stated in (names[0], f"{names[1]}.{names[0]}", repr(default))
    return bool(value == default) and type(value) is type(default)


def functions_of(public_object: Any) -> list[tuple[Callable[..., Any], dict[str, str]]]:
    """Returns each function of a public object that has an `Args:` section, with the section."""
    documented = [(public_object, public_object.__doc__)]
    if inspect.isclass(public_object):
        # What a protocol documents are attributes.
        is_protocol = getattr(public_object, "_is_protocol", False)
        documented = [] if is_protocol else [(public_object.__init__, public_object.__doc__)]
        documented += [
            (getattr(public_object, name), getattr(public_object, name).__doc__)
            for base in public_object.__mro__
            if base.__module__.startswith("keras_deepseek")
            for name, member in vars(base).items()
            if not name.startswith("_") and callable(getattr(member, "__func__", member))
        ]
    pairs = [(function, documented_arguments(text)) for function, text in documented]
    return [(function, arguments) for function, arguments in pairs if arguments is not None]


def test_documented_arguments_and_defaults_are_those_of_the_signature(public_name, public_object):
    problems = {
        function.__qualname__: disagreements(function, arguments)
        for function, arguments in functions_of(public_object)
    }
    assert {name: lines for name, lines in problems.items() if lines} == {}


def test_what_takes_arguments_documents_them(public_name, public_object):
    function = public_object.__init__ if inspect.isclass(public_object) else public_object
    names = set()
    if (getattr(function, "__module__", None) or "").startswith("keras_deepseek"):
        names = set(inspect.signature(function).parameters) - {"self", "args", "kwargs"}
    assert not names or documented_arguments(public_object.__doc__) is not None


@pytest.mark.parametrize(
    ("documentation", "complaint"),
    [
        ("Args:\n    size: integer.", "`name` is not documented"),
        ("Args:\n    size: integer.\n    name: string.\n    depth: x.", "`depth` does not exist"),
        ("Args:\n    size: Defaults to `2`.\n    name: x.", "`size` defaults to 1, not 2"),
        (
            "Args:\n    size: Long text.\n        Defaults\n        to `1.0`.\n    name: x.",
            "not 1.0",
        ),
    ],
)
def test_a_documentation_that_differs_is_found(documentation, complaint):
    def function(size: int = 1, name: str = "one") -> None:
        """Does nothing."""

    documented = documented_arguments(f"Does nothing.\n\n{documentation}")
    assert documented is not None
    assert complaint in "; ".join(disagreements(function, documented))
