"""Options as fields of a frozen dataclass, each with its check and its command-line flags.

`ServerOptions` and `ModelOptions` consist of them. These modules load no NumPy, so that `--help`
can read their flags.
"""

import argparse
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.inference.arguments import check_seconds

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type)

COUNT: dict[str, Any] = {"check": check_integer, "type": int, "metavar": "N"}
SECONDS: dict[str, Any] = {"check": check_seconds, "type": float, "metavar": "SECONDS"}
SWITCH: dict[str, Any] = {"check": check_boolean, "action": "store_true"}
"""Arguments of `option` for common kinds of options."""

_SHOWN_NAMES: dict[str, list[str]] = {}
"""The keywords of each function that `show_options` decorates."""


class Flag:
    """A flag of `keras-deepseek serve`, in a group of `--help` that has this title.

    In `text`, `{default}` stands for the default of the option. `settings` are further arguments of
    `ArgumentParser.add_argument`.
    """

    def __init__(self, name: str, group: str, text: str, **settings: Any) -> None:
        self.name, self.group, self.text, self.settings = name, group, text, settings


def option(
    group: str = "",
    text: str = "",
    *flags: Flag,
    flag: str = "",
    kind: str = "",
    check: Callable[[str, Any], object] | None = None,
    read: Callable[[argparse.Namespace], Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Returns the metadata of the dataclass field of an option.

    Args:
        group: The title of the flag's group in `--help`; empty if it has no flag of its own.
        text: The help of the flag.
        *flags: Further flags that set the option.
        flag: The name of the flag. Defaults to the name of the field.
        kind: The kind of models that the option is for. Defaults to all.
        check: Function of name and value that raises an error, or returns the value to hold, as
            a Python integer for one of NumPy. `None` is the value itself. A default of `None` is
            not checked.
        read: Function of the parsed flags that returns the value. Defaults to that of the flag.
        **settings: Further arguments of `ArgumentParser.add_argument`.
    """
    own_flag = (Flag(flag, group, text, **settings),) if group else ()
    return {"flags": (*own_flag, *flags), "kind": kind, "check": check, "read": read}


def check_options(options: Any) -> None:
    """Checks and converts each option that is not at a default of `None`."""
    for item in fields(options):
        value, check = getattr(options, item.name), item.metadata.get("check")
        if check is not None and not (value is None and item.default is None):
            checked = check(item.name, value)
            object.__setattr__(options, item.name, value if checked is None else checked)


def add_flags(options: type, groups: Mapping[str, "argparse._ArgumentGroup"]) -> None:
    """Adds the flags of a class of options to the groups of a parser, by title."""
    for item in fields(options):
        default = f"{item.default:g}" if isinstance(item.default, float) else item.default
        for flag in item.metadata.get("flags", ()):
            groups[flag.group].add_argument(
                flag.name or "--" + item.name.replace("_", "-"),
                help=flag.text.format(default=default),
                **flag.settings,
            )


def read_flags(options: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that are set by flags, by name."""
    values = {}
    for item in fields(options):
        flags, read = item.metadata["flags"], item.metadata["read"]
        if read is not None:
            values[item.name] = read(arguments)
        elif flags:
            name = flags[0].name.removeprefix("--").replace("-", "_") or item.name
            values[item.name] = getattr(arguments, name)
    return {name: value for name, value in values.items() if value is not None}


def show_options(options: type, keywords: Any) -> Callable[[FunctionT], FunctionT]:
    """Decorator that shows `**options` of a function as keywords, in `help` and in notebooks.

    The names are those of a `TypedDict`, the defaults those of the class of options.
    """

    def decorate(function: FunctionT) -> FunctionT:
        plain = inspect.signature(function)
        parameters = [
            parameter
            for parameter in plain.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        defaults = inspect.signature(options).parameters
        parameters += [
            defaults[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name in keywords.__annotations__
        ]
        function.__signature__ = plain.replace(parameters=parameters)  # type: ignore[attr-defined]
        _SHOWN_NAMES[_owner(function)] = [parameter.name for parameter in parameters]
        return _refuse_unknown_names(function)

    return decorate


def refuse_unknown_options(options: ClassT) -> ClassT:
    """Decorator of a class of options whose error for an unknown option has the nearest known."""
    options.__init__ = _refuse_unknown_names(options.__init__)  # type: ignore[misc]
    return options


def _refuse_unknown_names(function: FunctionT) -> FunctionT:
    names = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        for name in keywords.keys() - names:
            kind = f"option of `{_owner(function)}`"
            for owner, shown_names in _SHOWN_NAMES.items():
                if name in shown_names:
                    raise InvalidInputError(
                        f"Unknown {kind} {name!r}: it is an option of `{owner}`. Pass it there."
                    )
            raise InvalidInputError(unknown_name_message(kind, name, names))
        return function(*arguments, **keywords)

    return cast(FunctionT, call)


def _owner(function: Callable[..., Any]) -> str:
    """Returns the name of a function; of a constructor, the name of its class."""
    return function.__qualname__.removesuffix(".__init__").rpartition(".")[2]


def read_pairs(flag: str, pairs: Iterable[str]) -> dict[str, str]:
    """Parses the values of a flag that is repeated for each `NAME=VALUE`."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not (name and sign and value) or name in values:
            raise InvalidInputError(
                f"Received {flag} {pair!r}. Expected NAME=VALUE, with each name once."
            )
        values[name] = value
    return values


def read_number(flag: str, text: str) -> Any:
    """Parses a number as an integer if possible, else as a float."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise InvalidInputError(f"Received {text!r} in {flag}. Expected a number.")
