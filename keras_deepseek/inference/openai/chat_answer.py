"""Answers of `/v1/chat/completions`."""

from collections.abc import Iterable, Iterator, Sequence
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
from keras_deepseek.inference.openai.chat_request import ChatPrompt
from keras_deepseek.inference.openai.chunks import Choice
from keras_deepseek.inference.openai.log_probabilities import format_chat_details
from keras_deepseek.inference.text.text_answer import TextChoice, TextPiece


class ChatWriter:
    """Writes the choices of an answer to a conversation, in chunks or whole.

    Args:
        prompt: The conversation.
        has_details: True if log-probabilities are asked for.
    """

    def __init__(self, prompt: ChatPrompt, *, has_details: bool) -> None:
        self._prompt = prompt
        self._has_details = has_details
        self._open: dict[int, _OpenChoice] = {}

    def write(self, _number: int, piece: TextPiece) -> Iterator[Choice]:
        """Yields the choices of the chunks for a piece: the role first, the reason of the end last.

        Log-probabilities come with the piece's first chunk, though its text may come later.
        """
        choice = self._open.get(piece.choice)
        if choice is None:
            choice = self._open[piece.choice] = _OpenChoice(self._prompt.make_parser())
            yield _chunk(piece.choice, {"role": "assistant", "content": ""})
        deltas = choice.read(piece)
        details = format_chat_details(piece.tokens) if self._has_details else None
        if details is not None and not deltas:
            deltas = [{}]
        for delta in deltas:
            yield _chunk(piece.choice, delta, details)
            details = None
        if piece.finish_reason is not None:
            reason = choice.end(piece.finish_reason)
            yield {**_chunk(piece.choice, {}), "finish_reason": reason}

    def write_whole(self, choices: Sequence[TextChoice]) -> list[Choice]:
        """Returns the choices of a whole answer."""
        return [self._whole(number, choice) for number, choice in enumerate(choices)]

    def _whole(self, number: int, choice: TextChoice) -> Choice:
        parser = self._prompt.make_parser()
        if parser is None:
            message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        else:
            message = join_events(parser.feed(choice.text) + parser.finish())
        if "reasoning" in message:  # Of the two names, clients read one or the other.
            message["reasoning_content"] = message["reasoning"]
        return {
            "index": number,
            "message": message,
            "logprobs": format_chat_details(choice.tokens) if self._has_details else None,
            "finish_reason": _reason(choice.finish_reason, has_calls="tool_calls" in message),
        }


class _OpenChoice:
    """A choice that is being written."""

    def __init__(self, parser: ChatParser | None) -> None:
        self._parser = parser
        self._has_calls = False

    def read(self, piece: TextPiece) -> list[dict[str, Any]]:
        """Returns the deltas that a piece of the answer brings."""
        events: Iterable[ChatEvent]
        if self._parser is None:
            events = [ContentText(piece.text)] if piece.text else []
        else:
            events = self._parser.feed(piece.text)
            if piece.finish_reason is not None:
                events += self._parser.finish()
        return [self._delta(event) for event in events]

    def end(self, reason: str) -> str:
        """Returns OpenAI's reason for the end of the choice."""
        return _reason(reason, has_calls=self._has_calls)

    def _delta(self, event: ChatEvent) -> dict[str, Any]:
        match event:
            case ReasoningText(text):
                return {"reasoning": text, "reasoning_content": text}
            case ContentText(text):
                return {"content": text}
            case ToolCallStart(index, call_id, name):
                self._has_calls = True
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
            case ToolCallArguments(index, text):
                call = {"index": index, "function": {"arguments": text}}
        return {"tool_calls": [call]}


def _chunk(number: int, delta: dict[str, Any], details: dict[str, Any] | None = None) -> Choice:
    return {"index": number, "delta": delta, "logprobs": details, "finish_reason": None}


def _reason(reason: str, *, has_calls: bool) -> str:
    return "tool_calls" if has_calls and reason == "stop" else reason
