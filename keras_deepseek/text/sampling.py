"""The settings of a text request, with the names, defaults and checks of OpenAI's API."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidFieldError, InvalidInputError

MAX_CHOICES = 128
"""The most answers to one prompt, as of OpenAI."""

MAX_STOPS = 1024
"""The most stop strings, and the most stop tokens, of a request."""

MAX_STOP_CHARACTERS = 2**14
"""The most characters of all stop strings of a request: their automaton takes a few megabytes."""

MAX_BIASES = 1024
"""The most tokens whose logits a request may change."""

MAX_ALTERNATIVES = 20
"""The most likely tokens that may come with each token, as of OpenAI."""

ALIASES = {"max_completion_tokens": "max_tokens"}
"""Other names of fields in a request. Their errors bear the name that was received."""


def _check_top_k(name: str, value: Any) -> int | None:
    number = check_integer(name, value, minimum=-1)
    return number if number > 0 else None  # Clients send -1 or 0 for all tokens.


def _check_logprobs(name: str, value: Any) -> bool | int:
    if isinstance(value, bool):
        return value
    return check_integer(name, value, minimum=0, maximum=MAX_ALTERNATIVES)


def _check_stop(name: str, value: Any) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(
        isinstance(string, str) and string for string in strings
    ):
        raise InvalidInputError(
            f"`{name}` must be a string or a list of strings, none of them empty; "
            f"received {value!r}."
        )
    number, length = len(strings), sum(map(len, strings))
    if number > MAX_STOPS or length > MAX_STOP_CHARACTERS:
        raise InvalidInputError(
            f"`{name}` may have {MAX_STOPS} strings and {MAX_STOP_CHARACTERS} characters in all; "
            f"received {number} strings with {length} characters."
        )
    return tuple(strings)


def _check_tokens(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_STOPS:
        raise InvalidInputError(f"`{name}` must be a list of at most {MAX_STOPS} token ids.")
    return tuple(check_integer(name, token, minimum=0) for token in value)


def _check_biases(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        raise InvalidInputError(
            f"`{name}` must be an object of at most {MAX_BIASES} token ids with their biases."
        )
    biases = {}
    for token, bias in value.items():
        is_written = isinstance(token, str) and token.isascii() and token.isdecimal()
        number = check_integer(name, int(token) if is_written else token, minimum=0)
        biases[number] = check_number(f"{name}[{number}]", bias, minimum=-100, maximum=100)
    return biases


def _setting(default: Any, check: Callable[..., Any], **limits: float) -> Any:
    return field(default=default, metadata={"check": partial(check, **limits)})


@dataclass(frozen=True)
class SamplingOptions:
    """The settings of a text request, by OpenAI's names and those that vLLM has added.

    Args:
        max_tokens: The most tokens of the answer; 0 if nothing but the prompt is wanted. Defaults
            to what the model has room for.
        temperature: 0 is greedy.
        top_k: Number of the most likely tokens to draw from; -1, 0 and `None` are all.
        top_p: Total probability of the tokens to draw from.
        min_p: Smallest probability to draw, relative to that of the most likely token.
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely.
        presence_penalty: Is subtracted from the logits of the answer's tokens.
        frequency_penalty: Is subtracted from the logit of a token as often as the answer has it.
        logit_bias: Numbers that are added to the logits of tokens, by token id.
        seed: Makes the answer repeatable.
        stop: Strings that end the answer, and are no part of it.
        stop_token_ids: Tokens that end the answer, beside the tokenizer's own.
        n: Number of answers.
        logprobs: True, or a number of alternatives, for log-probabilities.
        top_logprobs: Number of alternatives that come with each token.
        ignore_eos: True if the tokenizer's end token does not end the answer.

    Raises:
        InvalidFieldError: A setting is of another type, or out of its range.
    """

    max_tokens: int | None = _setting(None, check_integer, minimum=0)
    temperature: float = _setting(1.0, check_number, minimum=0)
    top_k: int | None = _setting(None, _check_top_k)
    top_p: float = _setting(1.0, check_number, above=0, maximum=1)
    min_p: float = _setting(0.0, check_number, minimum=0, maximum=1)
    repetition_penalty: float = _setting(1.0, check_number, above=0)
    presence_penalty: float = _setting(0.0, check_number, minimum=-2, maximum=2)
    frequency_penalty: float = _setting(0.0, check_number, minimum=-2, maximum=2)
    logit_bias: Mapping[int, float] | None = _setting(None, _check_biases)
    seed: int | None = _setting(None, check_integer, minimum=-(2**63), maximum=2**63 - 1)
    stop: tuple[str, ...] = _setting((), _check_stop)
    stop_token_ids: tuple[int, ...] = _setting((), _check_tokens)
    n: int = _setting(1, check_integer, minimum=1, maximum=MAX_CHOICES)
    logprobs: bool | int | None = _setting(None, _check_logprobs)
    top_logprobs: int | None = _setting(None, check_integer, minimum=0, maximum=MAX_ALTERNATIVES)
    ignore_eos: bool = _setting(default=False, check=check_boolean)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.default is None:
                continue
            object.__setattr__(
                self, item.name, _check_field(item.name, value, item.metadata["check"])
            )
        if self.top_logprobs is not None and self.num_alternatives is None:
            raise InvalidFieldError("top_logprobs", "`top_logprobs` needs `logprobs: true`.")

    @classmethod
    def from_request(cls, request: Mapping[str, Any]) -> "SamplingOptions":
        """Reads the settings among the fields of a request.

        `None` means that a field was not given, and unknown fields are ignored.
        """
        values = {
            item.name: request[item.name]
            for item in fields(cls)
            if request.get(item.name) is not None
        }
        checks = {item.name: item.metadata["check"] for item in fields(cls)}
        for alias, name in ALIASES.items():
            if request.get(alias) is not None:
                values[name] = _check_field(alias, request[alias], checks[name])
        return cls(**values)

    @property
    def num_alternatives(self) -> int | None:
        """The number of alternatives that come with each token, or `None` without logprobs."""
        if self.logprobs is None or self.logprobs is False:
            return None
        return (self.top_logprobs or 0) if self.logprobs is True else self.logprobs

    def check_vocabulary(self, vocabulary_size: int) -> None:
        """Raises an `InvalidFieldError` if a token id is not one of the model's."""
        for name, tokens in (
            ("logit_bias", self.logit_bias or ()),
            ("stop_token_ids", self.stop_token_ids),
        ):
            for token in tokens:
                if token >= vocabulary_size:
                    raise InvalidFieldError(
                        name,
                        f"`{name}` has the token id {token}, and the model's are below "
                        f"{vocabulary_size}.",
                    )


def _check_field(name: str, value: Any, check: Callable[[str, Any], Any]) -> Any:
    try:
        return check(name, value)
    except InvalidInputError as error:
        raise InvalidFieldError(name, str(error)) from None
