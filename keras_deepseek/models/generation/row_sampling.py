"""The sampling of one row, and what a step of rows returns. Plain Python and NumPy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.generation.sampler import LEAST_TEMPERATURE

NUM_ALTERNATIVES = 20
"""The number of most likely tokens that a step returns with log-probabilities."""


class ChoiceKind(IntEnum):
    """The kinds of step by which tokens are chosen. Each can do what those before it can.

    All rows of a step have the kind that one of them needs. `DRAW` has a temperature. `CUT` has
    `top_k`, `top_p` and `min_p` too. `ALL` has penalties, biases and log-probabilities.
    """

    GREEDY = 0
    DRAW = 1
    CUT = 2
    ALL = 3


@dataclass(frozen=True)
class RowSampling:
    """The distribution from which the tokens of one row are drawn.

    Args:
        temperature: 0 is greedy: the token with the largest logit, after penalties and biases.
        top_k: Number of the largest logits to keep, or `None` for all.
        top_p: The most likely tokens are kept until their probabilities sum to this.
        min_p: Smallest probability to keep, relative to that of the most likely token.
        repetition_penalty: Above 1 makes tokens of the prompt and the answer less likely.
        presence_penalty: Is subtracted from the logits of the answer's tokens.
        frequency_penalty: Is subtracted from the logit of a token as often as the answer has it.
        logit_bias: Numbers that are added to the logits of tokens, by token id.
        num_alternatives: Not `None` if log-probabilities are needed.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_alternatives: int | None = None


RowSettings = Any
"""A `RowSampling`, or another object with its attributes. Its `logit_bias` may be `None`."""


def is_greedy(settings: RowSettings) -> bool:
    """Returns True if nothing is drawn."""
    return bool(settings.temperature < LEAST_TEMPERATURE)


def find_kind(settings: RowSettings) -> ChoiceKind:
    """Returns the simplest kind of step that does what a row needs."""
    has_penalty = settings.presence_penalty or settings.frequency_penalty
    if has_penalty or settings.repetition_penalty != 1 or settings.logit_bias:
        return ChoiceKind.ALL
    if settings.num_alternatives is not None:
        return ChoiceKind.ALL
    if is_greedy(settings):
        return ChoiceKind.GREEDY
    has_cut = settings.top_k is not None or settings.top_p < 1 or settings.min_p > 0
    return ChoiceKind.CUT if has_cut else ChoiceKind.DRAW


@dataclass(frozen=True)
class RowOutputs:
    """The next token of each row. A chunk of a prompt has one row.

    Args:
        tokens: int32 `(rows,)`.
        is_finite: Boolean `(rows,)`. False if the model's logits have NaN or infinity.
        log_probabilities: float32 `(rows,)`, of the model's logits before the sampler; `None` if no
            row needs them.
        top_tokens: int32 `(rows, 20)`, the most likely tokens, or `None`.
        top_log_probabilities: float32 `(rows, 20)`, or `None`.
    """

    tokens: Array
    is_finite: Array
    log_probabilities: Array | None = None
    top_tokens: Array | None = None
    top_log_probabilities: Array | None = None


@dataclass(frozen=True)
class PromptOutputs:
    """The log-probabilities of the tokens of a prompt.

    Args:
        log_probabilities: float32 `(length,)`.
        top_tokens: int32 `(length, 20)`, the most likely tokens.
        top_log_probabilities: float32 `(length, 20)`.
    """

    log_probabilities: Array
    top_tokens: Array
    top_log_probabilities: Array
