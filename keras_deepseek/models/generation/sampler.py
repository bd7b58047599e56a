"""How the next token is chosen: what a user sets, and what a compiled step is told of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message

_LEAST_TEMPERATURE = 1e-30
"""Logits that are divided by less are infinite in float32; only the largest would be drawn."""


@dataclass(frozen=True)
class Sampler:
    """What the next token is drawn from. Steps that are not set are left out.

    From the logits of all tokens, in this order, which is that of `transformers`:

    1. `repetition_penalty` divides positive logits of tokens that the row has had already, prompt
       included, and multiplies negative ones. Padding does not count.
    2. `temperature` divides the logits; 0, or less than 1e-30, takes the largest, and what follows
       has no use.
    3. `top_k` keeps the largest.
    4. `top_p` keeps the likeliest of these, until their share reaches `top_p`.
    5. `min_p` keeps those at least `min_p` times as likely as the likeliest.

    Of equal logits at the bound of a step all are kept, and the likeliest token always is.

    Args:
        temperature: float. `0.0` is greedy. Defaults to `1.0`.
        top_k: integer or `None`. Defaults to `None`.
        top_p: float in (0, 1], or `None`. Defaults to `None`.
        min_p: float in [0, 1], or `None`. Defaults to `None`.
        repetition_penalty: float. Above 1 repetition is rarer. Defaults to `1.0`.

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
        check_number("temperature", self.temperature, least=0)
        check_number("repetition_penalty", self.repetition_penalty, above=0)
        if self.top_k is not None:
            check_integer("top_k", self.top_k)
        if self.top_p is not None and check_number("top_p", self.top_p, above=0) > 1:
            raise InvalidInputError(f"`top_p` must be at most 1, received {self.top_p!r}.")
        if self.min_p is not None and check_number("min_p", self.min_p, least=0) > 1:
            raise InvalidInputError(f"`min_p` must be at most 1, received {self.min_p!r}.")

    @property
    def rules(self) -> "SamplingRules":
        """What of it is compiled: each further one is another function."""
        is_greedy = self.temperature < _LEAST_TEMPERATURE
        return SamplingRules(
            is_greedy=is_greedy,
            top_k=None if is_greedy else self.top_k,
            has_top_p=not is_greedy and self.top_p is not None and self.top_p < 1,
            has_min_p=not is_greedy and bool(self.min_p),
            has_penalty=self.repetition_penalty != 1,
        )

    @property
    def numbers(self) -> dict[str, Array]:
        """The numbers that compiled steps are given: others need no other function."""
        numbers = {
            "temperature": self.temperature or 1.0,
            "top_p": self.top_p or 1.0,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
        }
        return {name: np.asarray(number, "float32") for name, number in numbers.items()}


@dataclass(frozen=True)
class SamplingRules:
    """Which steps a `Sampler` takes.

    Args:
        is_greedy: Whether the largest logit is taken, so that nothing is drawn.
        top_k: How many are kept, or `None`.
        has_top_p: Whether `top_p` leaves any out.
        has_min_p: Whether `min_p` does.
        has_penalty: Whether tokens that were there already have other logits.
    """

    is_greedy: bool
    top_k: int | None
    has_top_p: bool
    has_min_p: bool
    has_penalty: bool


GREEDY = Sampler(temperature=0.0)


def get_sampler(sampler: Any) -> Sampler:
    """Returns a sampler from what a user gives as one.

    Args:
        sampler: `Sampler`, `"greedy"`, `"random"` for drawing from all tokens, or `None` for
            greedy.

    Raises:
        InvalidInputError: It is something else.
    """
    if isinstance(sampler, Sampler):
        return sampler
    known = {"greedy": GREEDY, "random": Sampler()}
    if sampler is None:
        return GREEDY
    if sampler not in list(known):
        raise InvalidInputError(
            unknown_name_message("sampler", sampler, known) + " Or give a `Sampler(...)`."
        )
    return known[sampler]
