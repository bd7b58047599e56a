"""Checks of OpenAI's messages, tools and response formats, with errors that name the field."""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in an earlier answer."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """A message, or the results of all calls of one answer, in the order of the calls.

    Args:
        role: The role of the message; `"tool"` for results.
        parts: The text of the message, or the text of each result.
        field: The path of the message in the request.
        reasoning: The reasoning of an answer.
        calls: The calls of an answer.
        has_text: False for a turn of the user that is of tool results alone.
    """

    role: str
    parts: tuple[str, ...]
    field: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    has_text: bool = True

    @property
    def text(self) -> str:
        """The text of the message."""
        return "".join(self.parts)


class _PendingResults:
    """The calls of the last answer, and the results that have arrived for them."""

    def __init__(self, field: str = "messages", calls: Sequence[ToolCall] = ()) -> None:
        self._field = field
        self._results: dict[str, str | None] = dict.fromkeys(call.id for call in calls)

    def add(self, call_id: Any, text: str, field: str) -> None:
        if not isinstance(call_id, str) or call_id not in self._results:
            raise ChatInputError(
                f"{field}.tool_call_id",
                f"must be the `id` of a call in the assistant message before it, as in "
                f"{show(list(self._results))}; received {show(call_id)}.",
            )
        if self._results[call_id] is not None:
            raise ChatInputError(f"{field}.tool_call_id", f"has a result already: {show(call_id)}.")
        self._results[call_id] = text

    def take(self) -> list[Turn]:
        """Returns the results as one turn, or no turn if none has arrived."""
        texts = [text for text in self._results.values() if text is not None]
        if texts and len(texts) < len(self._results):
            missing = next(name for name, text in self._results.items() if text is None)
            raise ChatInputError(
                f"{self._field}.tool_calls",
                f"needs a tool message for each call, and {show(missing)} has none.",
            )
        return [Turn("tool", tuple(texts), self._field)] if texts else []


def read_turns(messages: Any, style: ChatStyle) -> list[Turn]:
    """Checks chat messages and returns them as turns.

    Raises:
        ChatInputError: A message is not one of this format.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ChatInputError(
            "messages",
            f'must be a list such as [{{"role": "user", "content": "Hello"}}], received '
            f"{show(messages)}.",
        )
    roles = (*_ROLES, "latest_reminder") if style.reminder_token else _ROLES
    turns: list[Turn] = []
    pending = _PendingResults()
    for number, message in enumerate(messages):
        field = f"messages[{number}]"
        role = _read_mapping(message, field).get("role")
        if not isinstance(role, str) or role not in roles:
            raise unknown_name(f"{field}.role", role, roles)
        if role == "assistant":
            turn = _read_answer(message, field, style)
        else:
            text = _read_text(message.get("content"), f"{field}.content", style.part_separator)
            turn = Turn(role, (text,), field)
        if role == "tool":
            pending.add(message.get("tool_call_id"), turn.text, field)
        else:
            turns += [*pending.take(), turn]
            pending = _PendingResults(field, turn.calls)
    return [*turns, *pending.take()]


def _read_answer(message: Mapping[str, Any], field: str, style: ChatStyle) -> Turn:
    calls = _read_list(message.get("tool_calls"), f"{field}.tool_calls")
    content, text = message.get("content"), ""
    if content is not None or not calls:
        text = _read_text(content, f"{field}.content", style.part_separator)
    reasoning = ""
    for name in ("reasoning_content", "reasoning"):  # The second one wins.
        if message.get(name) is not None:
            reasoning = _read_string(message[name], f"{field}.{name}")
    read_calls: dict[str, ToolCall] = {}
    for number, received in enumerate(calls):
        call = _read_call(received, f"{field}.tool_calls[{number}]")
        if call.id in read_calls:
            raise ChatInputError(
                f"{field}.tool_calls[{number}].id", f"is that of another call: {show(call.id)}."
            )
        read_calls[call.id] = call
    return Turn("assistant", (text,), field, reasoning, tuple(read_calls.values()))


def _read_call(call: Any, field: str) -> ToolCall:
    call_id = _read_name(_read_mapping(call, field).get("id"), f"{field}.id")
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
    return ToolCall(call_id, name, _read_mapping(arguments, f"{field}.function.arguments"))


def read_tools(tools: Any) -> list[Mapping[str, Any]]:
    """Checks OpenAI's `tools` and returns their functions.

    Raises:
        ChatInputError: A tool is not a function with a name.
    """
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
    """Checks OpenAI's `response_format` and returns its JSON schema, or `None` for free text.

    Raises:
        ChatInputError: It is of an unknown type, or has no schema.
    """
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


def _read_mapping(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ChatInputError(field, f"must be an object, received {show(value)}.")
    return value


def _read_list(value: Any, field: str) -> Sequence[Any]:
    if value is not None and not isinstance(value, list | tuple):
        raise ChatInputError(field, f"must be a list, received {show(value)}.")
    return value or ()


def _read_string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ChatInputError(field, f"must be a string, received {show(value)}.")
    return value


def _read_name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise ChatInputError(field, f"must be a string that is not empty, received {show(value)}.")
    return value
