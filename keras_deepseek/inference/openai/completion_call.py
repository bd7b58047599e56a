"""Calls of `/v1/completions`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.openai.openai_call import (
    Choice,
    OpenAICall,
    Tokens,
    read_log_probability,
)
from keras_deepseek.inference.openai.openai_errors import naming_field
from keras_deepseek.inference.openai.request_fields import read_flag
from keras_deepseek.inference.text.text_answer import TextPiece, TextResult, TokenDetail
from keras_deepseek.inference.text.text_request import check_prompt_length
from keras_deepseek.text.sampling import SamplingOptions

MAX_PROMPTS = 1024
"""The most answers of one request, to all of its prompts."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for completions alone."""


class CompletionCall(OpenAICall):
    """One or more prompts, and the answers to them, whose choices follow each other.

    Args:
        content: The fields of the request. An error has the name of a wrong one.
    """

    kind = chunk_kind = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._has_echo = read_flag(content, "echo")
        settings = {"max_tokens": DEFAULT_MAX_TOKENS, **content}
        super().__init__(content, SamplingOptions.from_request(settings))
        self._num_choices = self.sampling.n
        self._sources = _read_prompts(content.get("prompt"))
        if len(self._sources) * self._num_choices > MAX_PROMPTS:
            raise InvalidFieldError(
                "prompt",
                f"A request may have {MAX_PROMPTS} answers; received {len(self._sources)} prompts "
                f"with `n` {self._num_choices}.",
            )
        self.options = {"has_echo": self._has_echo}
        self._offsets: dict[int, int] = {}
        """The characters of each choice so far."""

    def _encode(self, version: TextVersion) -> Sequence[Tokens]:
        prompts = [_tokenize(prompt, version) for prompt in self._sources]
        self._echoes = [""] * len(prompts)
        if self._has_echo:
            with naming_field("prompt"):
                self._echoes = [_write_prompt(prompt, version) for prompt in self._sources]
        return prompts

    def log_fields(self) -> Mapping[str, Any]:
        """Returns the fields of the request, with one of its prompts."""
        return {**self.content, "prompt": self._sources[len(self.answers)]}

    def _write(self, number: int, piece: TextPiece) -> Iterator[Choice]:
        """Yields the choice of the chunk for a piece, if it brings anything."""
        index = number * self._num_choices + piece.choice
        text, tokens = piece.text, piece.tokens
        if index not in self._offsets:
            self._offsets[index] = 0
            text = self._echoes[number] + text
            tokens = (*self.answers[number].prompt_details, *tokens)
        if text or tokens or piece.finish_reason is not None:
            yield self._choice(index, text, tokens, piece.finish_reason)

    def _write_whole(self, results: Sequence[TextResult]) -> list[Choice]:
        choices: list[Choice] = []
        for result, echo in zip(results, self._echoes, strict=True):
            for choice in result.choices:
                text, tokens = echo + choice.text, (*result.prompt_details, *choice.tokens)
                choices.append(self._choice(len(choices), text, tokens, choice.finish_reason))
        return choices

    def _choice(
        self, index: int, text: str, tokens: Iterable[TokenDetail], reason: str | None
    ) -> Choice:
        details = None
        if self.has_details:
            details, self._offsets[index] = _format_details(tokens, self._offsets.get(index, 0))
        return {"index": index, "text": text, "logprobs": details, "finish_reason": reason}


def _tokenize(prompt: str | Tokens, version: TextVersion) -> Tokens:
    if isinstance(prompt, str):
        return version.engine.tokenize(prompt)
    check_prompt_length(len(prompt), version.max_length)
    return prompt


def _write_prompt(prompt: str | Tokens, version: TextVersion) -> str:
    if isinstance(prompt, str):
        return prompt
    text: str = version.tokenizer.detokenize(prompt, skip_special_tokens=False)
    return text


def _format_details(details: Iterable[TokenDetail], offset: int) -> tuple[dict[str, Any], int]:
    """Returns the `logprobs` of the next tokens of a choice, and the offset of the characters then.

    The alternatives of a token have its own number under its text, whether or not it is one of the
    most likely: clients compare the largest of them with it.
    """
    form: dict[str, Any] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for detail in details:
        value = read_log_probability(detail)
        form["tokens"].append(detail.text)
        form["token_logprobs"].append(value)
        form["top_logprobs"].append(None if value is None else _alternatives(detail, value))
        form["text_offset"].append(offset)
        offset += len(detail.text)
    return form, offset


def _alternatives(detail: TokenDetail, value: float) -> dict[str, float]:
    values: dict[str, float] = {}
    for other in detail.alternatives:
        other_value = value if other.token_id == detail.token_id else read_log_probability(other)
        if other_value is not None:
            values.setdefault(other.text, other_value)  # Two may have one text: the better one.
    values[detail.text] = max(value, values.get(detail.text, value))
    return values


def _read_prompts(prompt: Any) -> Sequence[str | Tokens]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if is_token_ids(prompt):
            return [prompt]
        if len(prompt) <= MAX_PROMPTS:
            for number, item in enumerate(prompt):
                if not (isinstance(item, str) or is_token_ids(item)):
                    raise InvalidFieldError(
                        f"prompt[{number}]",
                        f"`prompt[{number}]` must be a string or a list of token ids, received "
                        f"{item!r:.50}.",
                    )
            return prompt
        raise InvalidFieldError(
            "prompt",
            f"`prompt` may be a list of {MAX_PROMPTS} prompts, or of token ids; received a list of "
            f"{len(prompt)} others.",
        )
    raise InvalidFieldError(
        "prompt",
        "`prompt` must be a string, a list of token ids, or a list of several such prompts; "
        f"received {prompt!r:.50}.",
    )


def is_token_ids(values: Any) -> bool:
    """Returns True for a list of integers that is not empty."""
    return isinstance(values, list) and set(map(type, values)) == {int}
