"""Parsing of a model's answer, while it is generated, into reasoning, content and tool calls."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any

from keras_deepseek.chat.call_arguments import CallArguments
from keras_deepseek.chat.chat_messages import read_tools
from keras_deepseek.chat.chat_style import THINK_CLOSE, THINK_OPEN, ChatStyle, get_style
from keras_deepseek.checks import check_boolean

_LONGEST_TAG = 1024
"""The length in characters above which a tag is text. A possible tag is held back up to it."""

_OTHER_CALLS_TAGS = ("toolcalls", "tool")
"""Names that models have written for the outer tag of calls."""

_BREAK = "\n\n"
"""The text before the outer tag of calls, which belongs to the tag."""


@dataclass(frozen=True)
class _TextEvent:
    text: str


class ReasoningText(_TextEvent):
    """A piece of the model's reasoning.

    Args:
        text: string.
    """


class ContentText(_TextEvent):
    """A piece of the answer's content.

    Args:
        text: string.
    """


@dataclass(frozen=True)
class ToolCallStart:
    """The start of a tool call.

    Args:
        index: integer. The number of the call in the answer.
        id: string. A new name for the call, by which its result refers to it.
        name: string. The name of the tool.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """A piece of the JSON text of a call's arguments.

    Args:
        index: integer. The number of the call in the answer.
        text: string. The piece. All pieces of a call that has ended make one JSON object.
    """

    index: int
    text: str


ChatEvent = ReasoningText | ContentText | ToolCallStart | ToolCallArguments
"""Any event of a `ChatParser`."""


class _State(Enum):
    REASONING = auto()
    CONTENT = auto()
    CALLS = auto()  # Between the calls of a block.
    CALL = auto()  # Between the parameters of a call.
    VALUE = auto()
    AFTER = auto()  # After a block of calls.


_PLAIN = (_State.REASONING, _State.CONTENT)
_IN_CALL = (_State.CALL, _State.VALUE)
_TRANSITIONS = (
    ("think", _PLAIN, _State.REASONING),
    ("end_think", _PLAIN, _State.CONTENT),
    ("calls", (*_PLAIN, _State.CALLS, _State.CALL, _State.AFTER), _State.CALLS),
    ("invoke", (_State.CONTENT, _State.CALLS, _State.CALL, _State.AFTER), _State.CALL),
    ("parameter", _IN_CALL, _State.VALUE),
    ("end_parameter", _IN_CALL, _State.CALL),
    ("end_invoke", (*_IN_CALL, _State.CALLS), _State.CALLS),
    ("end_calls", (*_IN_CALL, _State.CALLS), _State.AFTER),
)
"""The kind of a tag, the states in which it has a meaning, and the state that follows it.

A tag that is missing is understood from the next one: a parameter ends at the next parameter, at
the end of its call, or of all calls.
"""

_NEXT_STATES = {(tag, state): after for tag, states, after in _TRANSITIONS for state in states}


class ChatParser:
    """A parser of one answer, which gets its text in pieces and never raises an error for it.

    Choose it to show an answer while it is generated. Where the pieces are cut makes no difference.
    Give it text with the tokens of the format in it, `</think>` and the tags of calls, without the
    token that ends the answer.

    A tag is structure where the format can have it, and text elsewhere. Each other character is in
    one event, also in a damaged answer, except for: the two line breaks before a block of calls;
    white space between its tags; and what follows a block of calls until the next call. If an
    answer ends within a call, the JSON of the call is incomplete. Time is linear in the length.

    Args:
        style: string. `"v3.2"`, `"v4"` or `"v4.1"`.
        thinking: boolean. Whether the prompt was encoded with `thinking`. Defaults to `False`.
        tools: list of OpenAI's tools, or `None`. If their parameters are known, arguments that a
            model wraps in a parameter called `arguments` or `input` are unwrapped. Defaults to
            `None`.

    Raises:
        InvalidInputError: The style is unknown, or an argument is of another form.

    Example:

    >>> parser = ChatParser("v3.2", thinking=True)
    >>> parser.feed("A fox.</thi") + parser.feed("nk>Yes") + parser.finish()
    [ReasoningText(text='A fox.'), ContentText(text='Yes')]
    """

    def __init__(
        self,
        style: str,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self._tags, self._open_tags = _compile_tags(get_style(style))
        self._state = _State.REASONING if check_boolean("thinking", thinking) else _State.CONTENT
        self._parameter_names = {
            function["name"]: _read_parameter_names(function) for function in read_tools(tools)
        }
        self._events: list[tuple[tuple[Any, ...], list[str]]] = []
        self._tail = ""  # The possible start of a tag.
        self._line_breaks = ""  # Those at the end of the text, which may belong to a tag.
        self._has_stray_text = False
        self._num_calls = 0
        self._arguments = CallArguments()

    def feed(self, text: str) -> list[ChatEvent]:
        """Adds a piece of the answer, and returns what is now certain.

        Args:
            text: string.
        """
        text = self._tail + text
        position = 0
        for match in self._tags.finditer(text):
            if len(match[0]) > _LONGEST_TAG:
                continue
            self._take_text(text[position : match.start()])
            if not self._take_tag(match):
                self._take_text(match[0])
            position = match.end()
        end = self._find_tail(text, position)
        self._take_text(text[position:end])
        self._tail = text[end:]
        return self._take_events()

    def finish(self) -> list[ChatEvent]:
        """Returns what was held back, at the end of the answer."""
        text, self._tail = self._tail, ""
        self._take_text(text)
        self._release_line_breaks()
        if self._state in _IN_CALL:
            self._add_arguments(self._arguments.cut_off())
        return self._take_events()

    def _find_tail(self, text: str, position: int) -> int:
        """Returns where a tag may begin whose end is still to come, or the end of the text."""
        start = text.rfind("<", position)
        if start < 0 or len(text) - start >= _LONGEST_TAG:
            return len(text)
        return start if self._open_tags.fullmatch(text, start) else len(text)

    def _take_tag(self, match: re.Match[str]) -> bool:
        """Follows a tag, and returns whether it has a meaning where it stands."""
        tag = match.lastgroup or ""
        next_state = _NEXT_STATES.get((tag, self._state))
        if next_state is None:
            return False
        if tag == "calls" and self._state in _PLAIN:
            self._line_breaks = self._line_breaks.removesuffix(_BREAK)
        self._release_line_breaks()
        self._has_stray_text = False
        if self._state is _State.VALUE:
            self._add_arguments(self._arguments.end_value())
        if self._state in _IN_CALL and tag not in ("parameter", "end_parameter"):
            self._add_arguments(self._arguments.end())
        self._state = next_state
        if tag == "invoke":
            self._begin_call(match["tool"])
        elif tag == "parameter":
            is_string = match["is_string"] == "true"
            self._add_arguments(self._arguments.begin_value(match["name"], is_string))
        return True

    def _begin_call(self, tool: str) -> None:
        call_id = f"call_{uuid.uuid4().hex[:24]}"
        self._add_event(tool, ToolCallStart, self._num_calls, call_id)
        self._num_calls += 1
        self._arguments = CallArguments(self._parameter_names.get(tool, ()))

    def _take_text(self, text: str) -> None:
        """Takes text that is no tag."""
        if self._state in _PLAIN:
            text = self._line_breaks + text
            self._line_breaks = text[len(text.rstrip("\n")) :][-len(_BREAK) :]
            self._add_text(text[: len(text) - len(self._line_breaks)])
        elif self._state is _State.VALUE:
            self._add_arguments(self._arguments.add(text))
        elif self._state is not _State.AFTER:
            text = text if self._has_stray_text else text.lstrip()
            self._has_stray_text = self._has_stray_text or bool(text)
            self._add_text(text)

    def _release_line_breaks(self) -> None:
        text, self._line_breaks = self._line_breaks, ""
        self._add_text(text)

    def _add_text(self, text: str) -> None:
        is_reasoning = self._state is _State.REASONING
        self._add_event(text, ReasoningText if is_reasoning else ContentText)

    def _add_arguments(self, text: str) -> None:
        self._add_event(text, ToolCallArguments, self._num_calls - 1)

    def _add_event(self, text: str, *kind: Any) -> None:
        """Adds the text of an event to the last one, if that has the same class and arguments."""
        if text and self._events and self._events[-1][0] == kind:
            self._events[-1][1].append(text)
        elif text:
            self._events.append((kind, [text]))

    def _take_events(self) -> list[ChatEvent]:
        events, self._events = self._events, []
        return [kind[0](*kind[1:], "".join(pieces)) for kind, pieces in events]


def _read_parameter_names(function: Mapping[str, Any]) -> frozenset[str]:
    """Returns the names of a function's parameters; none if its schema does not name them."""
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return frozenset(properties if isinstance(properties, Mapping) else ())


@lru_cache
def _compile_tags(style: ChatStyle) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Returns the patterns of whole tags, by kind, and of the start of a tag at a text's end."""
    calls = "|".join(style.tag(name) for name in (style.calls_tag, *_OTHER_CALLS_TAGS))
    invoke, parameter = style.tag("invoke"), style.tag("parameter")
    text = r'[^"<>]'
    whole = (
        f"(?P<think>{THINK_OPEN})|(?P<end_think>{THINK_CLOSE})"
        f"|(?P<calls><(?:{calls})>)|(?P<end_calls></(?:{calls})>)"
        f'|(?P<invoke><{invoke}\\s+name="(?P<tool>{text}+)"\\s*>)|(?P<end_invoke></{invoke}>)'
        f'|(?P<parameter><{parameter}\\s+name="(?P<name>{text}+)"'
        f'(?:\\s+string="(?P<is_string>{text}*)")?\\s*>)|(?P<end_parameter></{parameter}>)'
    )
    names = [invoke, parameter, *calls.split("|")]
    literals = [THINK_OPEN, THINK_CLOSE, *(f"<{end}{name}>" for name in names for end in ("", "/"))]
    starts = {literal[:length] for literal in literals for length in range(1, len(literal))}
    ordered = "|".join(sorted(map(re.escape, starts), key=len, reverse=True))
    return re.compile(whole), re.compile(f"{ordered}|<(?:{invoke}|{parameter})\\s[^<>]*")


def join_events(events: Iterable[ChatEvent]) -> dict[str, Any]:
    """Joins the events of a whole answer to OpenAI's message of the role `assistant`.

    Args:
        events: All events of a `ChatParser`.

    Returns:
        A dict with `content`, and `reasoning` and `tool_calls` if there are any.

    Example:

    >>> parser = ChatParser("v3.2", thinking=True)
    >>> join_events(parser.feed("A fox.</think>Yes") + parser.finish())
    {'role': 'assistant', 'content': 'Yes', 'reasoning': 'A fox.'}
    """
    texts: dict[str | int, list[str]] = {"reasoning": [], "content": []}
    calls: list[ToolCallStart] = []
    for event in events:
        match event:
            case ReasoningText(text):
                texts["reasoning"].append(text)
            case ContentText(text):
                texts["content"].append(text)
            case ToolCallStart(index):
                calls.append(event)
                texts[index] = []
            case ToolCallArguments(index, text):
                texts[index].append(text)
    joined = {key: "".join(pieces) for key, pieces in texts.items()}
    message: dict[str, Any] = {"role": "assistant", "content": joined["content"]}
    if joined["reasoning"]:
        message["reasoning"] = joined["reasoning"]
    if calls:
        message["content"] = joined["content"] or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": joined[call.index]},
            }
            for call in calls
        ]
    return message
