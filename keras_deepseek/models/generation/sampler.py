"""Sampling options: the public `Sampler`, and its settings that are compiled into a step."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message

LEAST_TEMPERATURE = 1e-30
"""Dividing logits by less gives infinities in float32, so only the largest would be drawn."""


@dataclass(frozen=True)
class Sampler:
    """The distribution from which the next token is drawn. Steps that are not set are skipped.

    Choose one for text that should vary. The steps, from the logits of all tokens, have the order
    of `transformers`:

    1. `repetition_penalty` divides the positive logits of tokens that the row has already, prompt
       included, and multiplies negative ones. Padding does not count.
    2. `temperature` divides the logits. At 0, or less than 1e-30, the token with the largest logit
       is taken, and the other steps do nothing.
    3. `top_k` keeps the `top_k` largest logits.
    4. `top_p` keeps the most likely of these, until their probabilities sum to `top_p`.
    5. `min_p` keeps tokens that are at least `min_p` times as likely as the most likely one.

    Tokens with equal logits at the limit of a step are all kept. The most likely token is always
    kept.

    Args:
        temperature: float. `0.0` is greedy. Defaults to `1.0`.
        top_k: integer or `None`. Number of tokens to keep. Defaults to `None`.
        top_p: float in (0, 1], or `None`. Total probability of the tokens to keep. Defaults to
            `None`.
        min_p: float in [0, 1], or `None`. Smallest probability to keep, relative to the most likely
            token. Defaults to `None`.
        repetition_penalty: float. Above 1 makes repeated tokens less likely. Defaults to `1.0`.

    Raises:
        InvalidInputError: A number is out of its range.

    Example:

    >>> from keras_deepseek.models import Sampler
    >>> Sampler(temperature=0.7, top_p=0.9)
    Sampler(temperature=0.7, top_k=None, top_p=0.9, min_p=None, repetition_penalty=1.0)

    Reference:

    - [Nucleus sampling (Holtzman et al., 2019)](https://arxiv.org/abs/1904.09751)
    - [Min-p sampling (Nguyen et al., 2024)](https://arxiv.org/abs/2407.01082)
    - [CTRL (Keskar et al., 2019)](https://arxiv.org/abs/1909.05858), the repetition penalty
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, minimum=0)
        check_number("repetition_penalty", self.repetition_penalty, above=0)
        if self.top_k is not None:
            check_integer("top_k", self.top_k)
        if self.top_p is not None:
            check_number("top_p", self.top_p, above=0, maximum=1)
        if self.min_p is not None:
            check_number("min_p", self.min_p, minimum=0, maximum=1)

    @property
    def rules(self) -> "SamplingRules":
        """The part that is compiled: other rules need another function."""
        is_greedy = self.temperature < LEAST_TEMPERATURE
        return SamplingRules(
            is_greedy=is_greedy,
            top_k=None if is_greedy else self.top_k,
            has_top_p=not is_greedy and self.top_p is not None and self.top_p < 1,
            has_min_p=not is_greedy and bool(self.min_p),
            has_penalty=self.repetition_penalty != 1,
        )

    @property
    def numbers(self) -> dict[str, Array]:
        """The temperature and other numbers that compiled steps take as inputs."""
        numbers = {
            "temperature": self.temperature or 1.0,
            "top_p": self.top_p or 1.0,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
        }
        return {name: np.asarray(number, "float32") for name, number in numbers.items()}


@dataclass(frozen=True)
class SamplingRules:
    """The sampling operations that are compiled into a step, derived from a `Sampler`.

    Args:
        is_greedy: True if the largest logit is taken, so that nothing is drawn.
        top_k: The number of tokens that are kept, or `None`.
        has_top_p: True if `top_p` can exclude tokens.
        has_min_p: True if `min_p` can exclude tokens.
        has_penalty: True if the logits of seen tokens change.
    """

    is_greedy: bool
    top_k: int | None
    has_top_p: bool
    has_min_p: bool
    has_penalty: bool


GREEDY = Sampler(temperature=0.0)


def get_sampler(sampler: Any) -> Sampler:
    """Converts a user's `sampler` argument to a `Sampler`.

    `"greedy"` and `None` are greedy; `"random"` draws from all tokens.
    """
    if isinstance(sampler, Sampler):
        return sampler
    samplers = {"greedy": GREEDY, "random": Sampler()}
    if sampler is None:
        return GREEDY
    if sampler not in list(samplers):
        raise InvalidInputError(
            unknown_name_message("sampler", sampler, samplers)
            + " You can also give a `Sampler(...)`."
        )
    return samplers[sampler]
