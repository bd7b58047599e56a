"""The common parts of answers to chats and completions: ids, usage, and the order of chunks."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from keras_deepseek.inference.openai.text_body import TextBody
from keras_deepseek.inference.protocols.json_text import to_json
from keras_deepseek.inference.text.text_answer import TextAnswer, TextPiece

DONE = b"[DONE]"
"""The last event of a stream."""

Choice = dict[str, Any]

Count = Callable[[], dict[str, int]]
"""A function that returns the `usage` so far."""


class ChoiceWriter(Protocol):
    """A writer of the choices of chunks."""

    def write(self, number: int, piece: TextPiece) -> Iterable[Choice]:
        """Returns the choices of the chunks for a piece of the answer to prompt `number`."""


@dataclass(frozen=True)
class Envelope:
    """The fields of an answer around its choices.

    Args:
        kind: `"chat.completion"` or `"text_completion"`.
        prefix: The beginning of the id.
        model: The name of the model.
        chunk_kind: The kind of a chunk.
    """

    kind: str
    prefix: str
    model: str
    chunk_kind: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, choices: Sequence[Choice], **usage: Any) -> dict[str, Any]:
        """Returns a whole answer."""
        return self._wrap(self.kind, choices, usage)

    def wrap_chunk(self, choices: Sequence[Choice], **usage: Any) -> bytes:
        """Returns a chunk, as JSON."""
        return to_json(self._wrap(self.chunk_kind, choices, usage), is_finite=True)

    def _wrap(
        self, kind: str, choices: Sequence[Choice], usage: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **usage,
        }


def count_usage(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    """Returns the `usage` of an answer."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


async def write_chunks(
    body: TextBody,
    envelope: Envelope,
    answers: Sequence[TextAnswer],
    writer: ChoiceWriter,
    count: Count,
) -> AsyncIterator[bytes]:
    """Yields the events of a streamed answer."""
    usage: dict[str, Any] = {"usage": None} if body.has_usage else {}
    async for number, piece in _merge(answers):
        for choice in writer.write(number, piece):
            if body.has_running_usage:
                usage["usage"] = count()
            yield envelope.wrap_chunk([choice], **usage)
    if body.has_usage:
        yield envelope.wrap_chunk([], usage=count())
    yield DONE


async def _merge(answers: Sequence[TextAnswer]) -> AsyncIterator[tuple[int, TextPiece]]:
    """Yields the pieces of several answers as they come, with the numbers of the answers."""
    if len(answers) == 1:
        async for piece in answers[0]:
            yield 0, piece
        return
    readers = [aiter(answer) for answer in answers]
    waiting = {asyncio.ensure_future(anext(reader)): n for n, reader in enumerate(readers)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                yield number, piece
                waiting[asyncio.ensure_future(anext(readers[number]))] = number
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class AnswerStream:
    """The events of a streamed answer, which cancels its requests when it is closed.

    It has waited for the first event, so that an error before it has a status of its own.
    """

    def __init__(self, answers: Sequence[TextAnswer], events: AsyncIterator[bytes]) -> None:
        self._answers = answers
        self._events = events
        self._first: bytes | None = None

    async def open(self) -> None:
        """Waits for the first event."""
        self._first = await anext(self._events)

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> bytes:
        first, self._first = self._first, None
        return await anext(self._events) if first is None else first

    async def aclose(self) -> None:
        """Cancels what is not answered yet."""
        for answer in self._answers:
            answer.cancel()
