"""A request for texts that also writes its answer: in chunks as they come, or whole."""

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.openai.openai_errors import naming_field
from keras_deepseek.inference.openai.request_fields import read_flag, read_model, read_object
from keras_deepseek.inference.protocols.json_text import to_json
from keras_deepseek.inference.text.text_answer import TextAnswer, TextPiece, TextResult, TokenDetail
from keras_deepseek.text.sampling import ALIASES, SamplingOptions

DONE = b"[DONE]"
"""The last event of a stream."""

REFUSED_FIELDS = (
    "allowed_token_ids",
    "audio",
    "bad_words",
    "chat_template",
    "continue_final_message",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "include_stop_str_in_output",
    "length_penalty",
    "logits_processors",
    "min_tokens",
    "modalities",
    "prompt_embeds",
    "structured_outputs",
    "suffix",
    "truncate_prompt_tokens",
    "use_beam_search",
    "web_search_options",
)
"""Fields of OpenAI and vLLM that promise another answer, so that they can't be ignored."""

_HARMLESS = {"length_penalty": 1, "modalities": ["text"]}
"""Values with which refused fields change nothing, beside those that are false or empty."""

_MAX_PRIORITY = 2**31

_LEAST_LOG_PROBABILITY = -9999.0
"""In the place of minus infinity, which JSON does not have."""

Choice = dict[str, Any]
Tokens = Sequence[int]


class OpenAICall(ABC):
    """A request of one or more prompts, and their answers in the form of OpenAI's API.

    Iterate over it for the events of a streamed answer, after `open`.

    Args:
        content: The fields of the request. Unknown ones are ignored.
        sampling: The settings of the answers.
    """

    kind: ClassVar[str]
    """The kind of a whole answer."""
    chunk_kind: ClassVar[str]
    id_prefix: ClassVar[str]

    def __init__(self, content: Mapping[str, Any], sampling: SamplingOptions) -> None:
        for name in REFUSED_FIELDS:
            if content.get(name) and content[name] != _HARMLESS.get(name):
                raise InvalidFieldError(name, f"`{name}` is not supported here. Leave it out.")
        if not read_flag(content, "skip_special_tokens", default=True):
            raise InvalidFieldError("skip_special_tokens", "`skip_special_tokens` must be true.")
        if content.get("best_of", sampling.n) != sampling.n:
            raise InvalidFieldError("best_of", "`best_of` must be equal to `n`. Leave it out.")
        options = read_object(content, "stream_options")
        self.content = content
        self.sampling = sampling
        self.model = read_model(content)
        self.is_streamed = read_flag(content, "stream")
        self._has_usage = self.is_streamed and read_flag(
            options, "include_usage", "stream_options."
        )
        self._has_running_usage = self._has_usage and read_flag(
            options, "continuous_usage_stats", "stream_options."
        )
        with naming_field("priority"):
            priority = check_integer("priority", content.get("priority", 0), minimum=-_MAX_PRIORITY)
        self.priority = -min(priority, _MAX_PRIORITY)
        """A request of higher priority runs first. In vLLM's field a lower number does."""
        self.answers: list[TextAnswer] = []
        """The answers so far, one for each prompt."""
        self.prompts: Sequence[Tokens] = ()
        self.options: dict[str, bool] = {}
        """Further arguments of `TextEngine.submit`."""
        self.field_names = {
            name: alias for alias, name in ALIASES.items() if content.get(alias) is not None
        }
        """The client's names of fields, where it uses other ones than the engine."""
        self.has_details = sampling.num_alternatives is not None
        self._version: TextVersion | None = None
        self._head: dict[str, Any] = {}

    def encode_for(self, version: TextVersion) -> Tokens:
        """Returns the next prompt for a model, which may have replaced another one meanwhile."""
        if version is not self._version:
            self.prompts = self._encode(version)
            self._version = version
            self._head = {
                "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
                "object": self.kind,
                "created": int(time.time()),
                "model": version.name,
            }
        return self.prompts[len(self.answers)]

    def log_fields(self) -> Mapping[str, Any]:
        """Returns the fields of the request for the next prompt, for the log of requests."""
        return self.content

    @abstractmethod
    def _encode(self, version: TextVersion) -> Sequence[Tokens]:
        """Returns the tokens of all prompts."""

    @abstractmethod
    def _write(self, number: int, piece: TextPiece) -> Iterable[Choice]:
        """Returns the choices of the chunks for a piece of the answer to prompt `number`."""

    @abstractmethod
    def _write_whole(self, results: Sequence[TextResult]) -> list[Choice]:
        """Returns the choices of whole answers."""

    def cancel(self) -> None:
        """Cancels what is not answered yet."""
        for answer in self.answers:
            answer.cancel()

    def write_whole(self, results: Sequence[TextResult]) -> dict[str, Any]:
        """Returns the whole answer."""
        return {**self._head, "choices": self._write_whole(results), "usage": self._count()}

    async def open(self) -> None:
        """Waits for the first event of a streamed answer: an error before it has a status."""
        self._events = self._write_chunks()
        self._first_event = await anext(self._events)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first_event
        async for event in self._events:
            yield event

    async def aclose(self) -> None:
        """Cancels what is not answered yet."""
        self.cancel()

    async def _write_chunks(self) -> AsyncIterator[bytes]:
        usage: dict[str, Any] = {"usage": None} if self._has_usage else {}
        async for number, piece in _merge(self.answers):
            for choice in self._write(number, piece):
                if self._has_running_usage:
                    usage["usage"] = self._count()
                yield self._chunk([choice], usage)
        if self._has_usage:
            yield self._chunk([], {"usage": self._count()})
        yield DONE

    def _chunk(self, choices: list[Choice], usage: dict[str, Any]) -> bytes:
        chunk = {**self._head, "object": self.chunk_kind, "choices": choices, **usage}
        return to_json(chunk, is_finite=True)

    def _count(self) -> dict[str, int]:
        """Returns the `usage` so far."""
        num_prompt_tokens = sum(answer.num_prompt_tokens for answer in self.answers)
        num_tokens = sum(answer.num_tokens for answer in self.answers)
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": num_prompt_tokens + num_tokens,
        }


def read_log_probability(detail: TokenDetail) -> float | None:
    """Returns the log-probability of a token as a number that JSON has."""
    return (
        None
        if detail.log_probability is None
        else max(detail.log_probability, _LEAST_LOG_PROBABILITY)
    )


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
