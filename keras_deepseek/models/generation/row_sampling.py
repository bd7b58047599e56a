"""The kinds of step that rows need for their sampling."""

from enum import IntEnum

from keras_deepseek.models.generation.sampler import LEAST_TEMPERATURE
from keras_deepseek.text.sampling import SamplingOptions


class ChoiceKind(IntEnum):
    """The kinds of step by which tokens are chosen. Each can do what those before it can.

    All rows of a step have the kind that one of them needs. `DRAW` has a temperature. `CUT` has
    `top_k`, `top_p` and `min_p` too. `ALL` has penalties, biases and log-probabilities.
    """

    GREEDY = 0
    DRAW = 1
    CUT = 2
    ALL = 3


def is_greedy(settings: SamplingOptions) -> bool:
    """Returns True if nothing is drawn."""
    return bool(settings.temperature < LEAST_TEMPERATURE)


def find_kind(settings: SamplingOptions) -> ChoiceKind:
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
