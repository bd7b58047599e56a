"""Checks of OpenAI's messages, tools and response formats, with errors that name the field."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from keras_deepseek.chat.chat_style import ChatStyle
from keras_deepseek.errors import InvalidFieldError, unknown_name_message

_ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatInputError(InvalidFieldError):
    """The error for a field of a chat request that can't be encoded.

    Args:
        field: string. The path of the field, as in `"messages[2].role"`. An API returns it as
            `param`.
        message: string. The fault, as a sentence that follows the field's name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, f"`{field}` {message}")


def unknown_name(field: str, received: Any, names: Iterable[str]) -> ChatInputError:
    """Returns the error for a field that is none of some names."""
    text = received[:50] if isinstance(received, str) else show(received)
    return ChatInputError(field, f"is wrong. {unknown_name_message('name', text, names)}")


show = reprlib.Repr().repr
"""Shows a received value in a few words, however large and deep it is."""


Call = tuple[str, str, Mapping[str, Any]]


@dataclass(frozen=True)
class Turn:
    """A message, or the results of all calls of one answer, in the order of the calls.

    Args:
        role: The role of the message; `"tool"` for results.
        parts: The text of the message, or the text of each result.
        field: The path of the message in the request.
        reasoning: The reasoning of an answer.
        calls: The id, the name and the arguments of each call of an answer.
        has_text: False for a turn of the user that is of tool results alone.
    """

    role: str
    parts: tuple[str, ...]
    field: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    has_text: bool = True

    @property
    def text(self) -> str:
        """The text of the message."""
        return "".join(self.parts)


def read_turns(messages: Any, style: ChatStyle) -> list[Turn]:
    """Checks chat messages and returns them as turns."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ChatInputError(
            "messages",
            f'must be a list such as [{{"role": "user", "content": "Hello"}}], received '
            f"{show(messages)}.",
        )
    roles = (*_ROLES, "latest_reminder") if style.reminder_token else _ROLES
    turns: list[Turn] = []
    results: dict[str, str | None] = {}  # Of the calls of the last answer.
    for number, message in enumerate(messages):
        path = f"messages[{number}]"
        role = _read_mapping(message, path).get("role")
        if not isinstance(role, str) or role not in roles:
            raise unknown_name(f"{path}.role", role, roles)
        if role == "assistant":
            turn = _read_answer(message, path, style)
        else:
            text = _read_text(message.get("content"), f"{path}.content", style.part_separator)
            turn = Turn(role, (text,), path)
        if role == "tool":
            _add_result(results, message.get("tool_call_id"), turn.text, f"{path}.tool_call_id")
        else:
            turns += [*_join_results(results, turns), turn]
            results = dict.fromkeys(call_id for call_id, _, _ in turn.calls)
    return [*turns, *_join_results(results, turns)]


def _add_result(results: dict[str, str | None], call_id: Any, text: str, path: str) -> None:
    if not isinstance(call_id, str) or call_id not in results:
        raise ChatInputError(
            path,
            f"must be the `id` of a call in the assistant message before it, as in "
            f"{show(list(results))}; received {show(call_id)}.",
        )
    if results[call_id] is not None:
        raise ChatInputError(path, f"has a result already: {show(call_id)}.")
    results[call_id] = text


def _join_results(results: Mapping[str, str | None], turns: Sequence[Turn]) -> list[Turn]:
    """Returns the results of the calls of the last turn as one turn, or none without results."""
    texts = [text for text in results.values() if text is not None]
    if not texts:
        return []
    path = turns[-1].field
    if len(texts) < len(results):
        missing = next(name for name, text in results.items() if text is None)
        raise ChatInputError(
            f"{path}.tool_calls",
            f"needs a tool message for each call, and {show(missing)} has none.",
        )
    return [Turn("tool", tuple(texts), path)]


def _read_answer(message: Mapping[str, Any], field: str, style: ChatStyle) -> Turn:
    calls = _read_list(message.get("tool_calls"), f"{field}.tool_calls")
    content, text = message.get("content"), ""
    if content is not None or not calls:
        text = _read_text(content, f"{field}.content", style.part_separator)
    reasoning = ""
    for name in ("reasoning_content", "reasoning"):  # The second one wins.
        if message.get(name) is not None:
            reasoning = _read_string(message[name], f"{field}.{name}")
    read_calls: dict[str, Call] = {}
    for number, call in enumerate(calls):
        path = f"{field}.tool_calls[{number}]"
        call_id = _read_name(_read_mapping(call, path).get("id"), f"{path}.id")
        if call_id in read_calls:
            raise ChatInputError(f"{path}.id", f"is that of another call: {show(call_id)}.")
        read_calls[call_id] = (call_id, *_read_call(call, path))
    return Turn("assistant", (text,), field, reasoning, tuple(read_calls.values()))


def _read_call(call: Mapping[str, Any], field: str) -> tuple[str, Mapping[str, Any]]:
    function = _read_mapping(call.get("function"), f"{field}.function")
    name = _read_name(function.get("name"), f"{field}.function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise ChatInputError(
                f"{field}.function.arguments", f"must be JSON: {error}; received {show(arguments)}."
            ) from error
    return name, _read_mapping(arguments, f"{field}.function.arguments")


def read_tools(tools: Any) -> list[Mapping[str, Any]]:
    """Checks OpenAI's `tools` and returns their functions."""
    functions = []
    for number, tool in enumerate(_read_list(tools, "tools")):
        field = f"tools[{number}]"
        if _read_mapping(tool, field).get("type", "function") != "function":
            raise ChatInputError(
                f"{field}.type", f"must be 'function', received {show(tool['type'])}."
            )
        function = _read_mapping(tool.get("function"), f"{field}.function")
        _read_name(function.get("name"), f"{field}.function.name")
        functions.append(function)
    return functions


def read_response_schema(response_format: Any) -> Any:
    """Checks OpenAI's `response_format` and returns its JSON schema, or `None` for free text."""
    if response_format is None:
        return None
    kind = _read_mapping(response_format, "response_format").get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise unknown_name("response_format.type", kind, ("text", "json_object", "json_schema"))
    field = "response_format.json_schema"
    schema = _read_mapping(response_format.get("json_schema"), field).get("schema")
    return _read_mapping(schema, f"{field}.schema")


def _read_text(content: Any, field: str, separator: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatInputError(
            field,
            'must be a string or a list of {"type": "text", "text": ...}, received '
            f"{show(content)}.",
        )
    texts = []
    for number, part in enumerate(content):
        kind = _read_mapping(part, f"{field}[{number}]").get("type")
        if kind != "text":
            raise ChatInputError(
                f"{field}[{number}].type",
                f"must be 'text', as this model reads text alone; received {show(kind)}.",
            )
        texts.append(_read_string(part.get("text"), f"{field}[{number}].text"))
    return separator.join(texts)


def _read(value: Any, path: str, *, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind):
        raise ChatInputError(path, f"must be {expected}, received {show(value)}.")
    return value


_read_mapping = partial(_read, kind=Mapping, expected="an object")
_read_string = partial(_read, kind=str, expected="a string")


def _read_list(value: Any, path: str) -> Sequence[Any]:
    values = () if value is None else value
    received: Sequence[Any] = _read(values, path, kind=list | tuple, expected="a list")
    return received


def _read_name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value:
        raise ChatInputError(path, f"must be a string that is not empty, received {show(value)}.")
    return value
