"""Calls of `/v1/chat/completions`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_deepseek.chat import (
    ChatEvent,
    ChatParser,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStart,
    join_events,
)
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.openai.chat_prompt import encode_conversation
from keras_deepseek.inference.openai.openai_call import (
    Choice,
    OpenAICall,
    Tokens,
    read_log_probability,
)
from keras_deepseek.inference.openai.openai_errors import renaming_fields
from keras_deepseek.inference.text.text_answer import TextChoice, TextPiece, TextResult, TokenDetail
from keras_deepseek.text.sampling import SamplingOptions


class ChatCall(OpenAICall):
    """A conversation, and the answer to it.

    Args:
        content: The fields of the request. An error has the name of a wrong one.
    """

    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content, SamplingOptions.from_request(content))
        self.field_names["prompt"] = "messages"
        self._parsers: dict[int, ChatParser | None] = {}
        self._calling: set[int] = set()
        """The choices that have called a tool."""

    def _encode(self, version: TextVersion) -> Sequence[Tokens]:
        self._prompt = encode_conversation(self.content, version)
        self.options = {"keeps_special_tokens": self._prompt.keeps_special_tokens}
        with renaming_fields({"prompt": "messages"}):
            return [version.engine.tokenize(self._prompt.text, adds_special_tokens=False)]

    def _write(self, number: int, piece: TextPiece) -> Iterator[Choice]:
        """Yields the choices of the chunks for a piece: the role first, the reason of the end last.

        Log-probabilities come with the piece's first chunk, though its text may come later.
        """
        choice = piece.choice
        if choice not in self._parsers:
            self._parsers[choice] = self._prompt.make_parser()
            yield _chunk(choice, {"role": "assistant", "content": ""})
        is_last = piece.finish_reason is not None
        events = _parse(self._parsers[choice], piece.text, is_last=is_last)
        if any(isinstance(event, ToolCallStart) for event in events):
            self._calling.add(choice)
        deltas = [_delta(event) for event in events]
        details = _format_details(piece.tokens) if self.has_details else None
        if details is not None and not deltas:
            deltas = [{}]
        for delta in deltas:
            yield _chunk(choice, delta, details)
            details = None
        if piece.finish_reason is not None:
            reason = _reason(piece.finish_reason, has_calls=choice in self._calling)
            yield {**_chunk(choice, {}), "finish_reason": reason}

    def _write_whole(self, results: Sequence[TextResult]) -> list[Choice]:
        (result,) = results
        return [self._write_choice(number, choice) for number, choice in enumerate(result.choices)]

    def _write_choice(self, number: int, choice: TextChoice) -> Choice:
        message = join_events(_parse(self._prompt.make_parser(), choice.text, is_last=True))
        if "reasoning" in message:  # Of the two names, clients read one or the other.
            message["reasoning_content"] = message["reasoning"]
        return {
            "index": number,
            "message": message,
            "logprobs": _format_details(choice.tokens) if self.has_details else None,
            "finish_reason": _reason(choice.finish_reason, has_calls="tool_calls" in message),
        }


def _parse(parser: ChatParser | None, text: str, *, is_last: bool) -> list[ChatEvent]:
    if parser is None:
        return [ContentText(text)] if text else []
    return parser.feed(text) + (parser.finish() if is_last else [])


def _delta(event: ChatEvent) -> dict[str, Any]:
    match event:
        case ReasoningText(text):
            return {"reasoning": text, "reasoning_content": text}
        case ContentText(text):
            return {"content": text}
        case ToolCallStart(index, call_id, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": call_id, "type": "function", "function": function}
        case ToolCallArguments(index, text):
            call = {"index": index, "function": {"arguments": text}}
    return {"tool_calls": [call]}


def _chunk(number: int, delta: dict[str, Any], details: dict[str, Any] | None = None) -> Choice:
    return {"index": number, "delta": delta, "logprobs": details, "finish_reason": None}


def _reason(reason: str, *, has_calls: bool) -> str:
    return "tool_calls" if has_calls and reason == "stop" else reason


def _format_details(details: Iterable[TokenDetail]) -> dict[str, Any]:
    """Returns the `logprobs` of a choice."""
    content = [
        {**_entry(detail), "top_logprobs": [_entry(other) for other in detail.alternatives]}
        for detail in details
    ]
    return {"content": content, "refusal": None}


def _entry(detail: TokenDetail) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own.
    is_whole = "\N{REPLACEMENT CHARACTER}" not in detail.text
    data = list(detail.text.encode("utf-8", "replace")) if is_whole else None
    return {"token": detail.text, "logprob": read_log_probability(detail), "bytes": data}
