"""The arguments of a tool call, written as pieces of JSON text while their tags are read."""

import json
from collections.abc import Collection
from typing import Any, NoReturn

_WRAPPERS = ("arguments", "input")
"""Parameters in which models sometimes put all arguments, as one JSON object."""

_NO_JSON = object()


class CallArguments:
    """A writer of one JSON object, whose values arrive one after another, each in pieces.

    A string is written as it comes. Any other value is written when it is complete, as it stands if
    it is JSON, else as a string. Each method returns the text that is now certain.

    Args:
        parameter_names: The names of the tool's parameters; empty if they are unknown. The object
            in a parameter that they lack and that is the only one, such as `arguments`, is taken
            for the arguments themselves.
    """

    def __init__(self, parameter_names: Collection[str] = ()) -> None:
        self._parameter_names = parameter_names
        self._num_values = 0
        self._is_in_value = self._is_streamed = self._is_wrapper = False
        self._head = ""
        self._wrapped: str | None = None  # The value of a wrapper, until the call ends.

    def begin_value(self, name: str, is_string: bool) -> str:
        """Begins a value. Without `is_string` it may be JSON."""
        text = self._unwrap()
        self._head = f"{', ' if self._num_values else '{'}{_quote(name)}: "
        self._is_wrapper = (
            not self._num_values
            and name in _WRAPPERS
            and bool(self._parameter_names)
            and name not in self._parameter_names
        )
        self._num_values += 1
        self._pieces: list[str] = []
        self._is_in_value = True
        self._is_streamed = is_string and not self._is_wrapper
        self._is_string = is_string
        return f'{text}{self._head}"' if self._is_streamed else text

    def add(self, piece: str) -> str:
        """Adds a piece of the value's text."""
        if self._is_streamed:
            return _quote(piece)[1:-1]
        self._pieces.append(piece)
        return ""

    def end_value(self) -> str:
        """Ends a value."""
        self._is_in_value = False
        if self._is_streamed:
            return '"'
        text = "".join(self._pieces)
        if self._is_wrapper:
            value = _read_json(text)
            if isinstance(value, dict) and value.keys() <= set(self._parameter_names):
                self._wrapped = text
                return ""
        return self._head + self._write(text)

    def end(self) -> str:
        """Ends the call."""
        if self._wrapped is not None:
            return self._wrapped
        return "}" if self._num_values else "{}"

    def cut_off(self) -> str:
        """Returns the text that is not written yet, if the answer ends within the call.

        The JSON stays incomplete, so that nobody runs a call that was not finished.
        """
        if not self._is_in_value:
            return self._unwrap()
        return "" if self._is_streamed else self._head + "".join(self._pieces)

    def _unwrap(self) -> str:
        """Returns a wrapper as the plain value that it is if it does not stand alone."""
        if self._wrapped is None:
            return ""
        text, self._wrapped = self._head + self._write(self._wrapped), None
        return text

    def _write(self, text: str) -> str:
        is_json = not self._is_string and _read_json(text) is not _NO_JSON
        return text if is_json else _quote(text)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (RecursionError, ValueError):
        return _NO_JSON


def _refuse(constant: str) -> NoReturn:
    """Refuses NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
