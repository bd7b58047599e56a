"""A request for a text, and the events of its answer."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.text.sampling import SamplingOptions

Outcome = Literal["token", "stop", "length", "cancelled", "deadline", "failed"]
"""The meaning of an event. `"token"`: a token, and more will follow. All others end the answer.
`"stop"`: a stop token or a stop string. `"length"`: it has the most tokens that it may have.
`"deadline"`: there was no first token in time. `"failed"`: the model raised an error.
"""


TOO_LONG = "context_length_exceeded"
"""OpenAI's code of the error for a prompt that is too long, or whose answer may be."""


def check_prompt_length(
    num_tokens: int, max_length: int, *, field: str = "prompt", is_least: bool = False
) -> None:
    """Raises an `InvalidFieldError` if a prompt leaves no room for an answer.

    With `is_least` the prompt has at least `num_tokens` tokens. Clients look for the first words of
    the message, which are OpenAI's.
    """
    if num_tokens >= max_length:
        raise InvalidFieldError(
            field,
            f"This model's maximum context length is {max_length} tokens. The prompt has "
            f"{'at least ' if is_least else ''}{num_tokens} tokens, and its answer needs one more.",
            TOO_LONG,
        )


class TextRequest:
    """A prompt that takes one row of the cache until its answer ends.

    Args:
        prompt: The token ids.
        sampling: The settings. Those of `n` answers are shared by `n` requests.
        choice: The number of this answer among those.
        client: The name of the client. Clients share the rows fairly.
        priority: A request of higher priority is read first.
        deadline: The time at which the first token is useless, in seconds of the scheduler's clock.
        end_tokens: The tokens by which the tokenizer ends a text.

    Raises:
        InvalidFieldError: The prompt is empty, or not a sequence of token ids.
    """

    def __init__(
        self,
        prompt: Iterable[int],
        sampling: SamplingOptions | None = None,
        *,
        choice: int = 0,
        client: str = "",
        priority: int = 0,
        deadline: float = math.inf,
        end_tokens: Iterable[int] = (),
    ) -> None:
        self.sampling = sampling or SamplingOptions()
        self.prompt = _read_prompt(prompt)
        self.choice = choice
        self.client = client
        self.priority = priority
        self.deadline = deadline
        own_ends = () if self.sampling.ignore_eos else end_tokens
        self.stop_tokens = frozenset((*self.sampling.stop_token_ids, *own_ends))
        # The scheduler writes these.
        self.max_tokens = self.sampling.max_tokens or 0
        self.tokens: list[int] = []
        self.num_read = 0
        self.row: int | None = None
        self.arrived = 0.0

    @classmethod
    def choices(
        cls, prompt: Iterable[int], sampling: SamplingOptions, **options: Any
    ) -> "list[TextRequest]":
        """Returns the requests of all `n` answers to a prompt. They hold its tokens once."""
        tokens = _read_prompt(prompt)
        return [cls(tokens, sampling, choice=choice, **options) for choice in range(sampling.n)]

    @property
    def position(self) -> int:
        """The slot of its last token, which the model reads for the next one."""
        return len(self.prompt) + len(self.tokens) - 1

    def take_room(self, num_slots: int) -> None:
        """Sets the most tokens of the answer, where a row has room for `num_slots`.

        Raises an `InvalidFieldError` if the prompt or the answer is too long.
        """
        length = len(self.prompt)
        check_prompt_length(length, num_slots)
        max_tokens = self.sampling.max_tokens
        self.max_tokens = num_slots - length if max_tokens is None else max_tokens
        if length + self.max_tokens > num_slots:
            raise InvalidFieldError(
                "max_tokens",
                f"This model's maximum context length is {num_slots} tokens. The prompt has "
                f"{length} tokens, so that `max_tokens` may be {num_slots - length} at most, or "
                f"left out; received {self.max_tokens}.",
                TOO_LONG,
            )

    def check_vocabulary(self, vocabulary_size: int) -> None:
        """Raises an `InvalidFieldError` if a token id is not one of the model's."""
        largest = max(self.prompt)
        if largest >= vocabulary_size:
            raise InvalidFieldError(
                "prompt",
                f"The prompt has the token id {largest}, and the model's are below "
                f"{vocabulary_size}.",
            )
        self.sampling.check_vocabulary(vocabulary_size)


@dataclass(frozen=True)
class TextEvent:
    """An event of a request.

    Args:
        time: Seconds of the scheduler's clock.
        token: The token id, also that of a stop token. `None` if the event brings no token.
        row: The row of the batch in which the model has computed the token. The chunk of a prompt
            is a batch of one row.
        error: The error of the model, if the request has failed.
    """

    request: TextRequest
    kind: Outcome
    time: float
    token: int | None = None
    row: int = 0
    error: BaseException | None = None

    @property
    def is_last(self) -> bool:
        """True if the answer has ended."""
        return self.kind != "token"


def _read_prompt(prompt: Iterable[int]) -> "array[int]":
    """Returns token ids with four bytes each, where a list would take about ten times as many."""
    try:
        tokens = prompt if isinstance(prompt, array) else array("i", prompt)
    except (TypeError, OverflowError) as error:
        raise InvalidFieldError("prompt", f"The prompt must be token ids: {error}.") from None
    if not tokens or min(tokens) < 0:
        raise InvalidFieldError("prompt", "The prompt must have a token, and none below 0.")
    return tokens
