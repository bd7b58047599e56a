"""The loop over tokens, on the host: it counts slots and rows, and runs the compiled steps.

`generation` reads what a user gives and says; this file knows of token ids alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.generation.compiled_steps import (
    CompiledSteps,
    StepKind,
    holds_slots_alone,
    to_numpy,
)
from keras_deepseek.models.generation.lengths import first_capacity, next_capacity, round_up
from keras_deepseek.models.generation.prompts import Prompts
from keras_deepseek.models.generation.sampler import Sampler


@dataclass(frozen=True)
class TokenRequest:
    """What is to be generated.

    Args:
        prompts: `Prompts`.
        budgets: How many tokens each row gets at most.
        stop_tokens: Those at which each row stops.
        sampler: `Sampler`.
        seed: integer.
        has_log_probabilities: Whether those of the tokens are wanted.
    """

    prompts: Prompts
    budgets: Sequence[int]
    stop_tokens: Sequence[frozenset[int]]
    sampler: Sampler
    seed: int
    has_log_probabilities: bool = False


@dataclass(frozen=True)
class NewToken:
    """One token of one row.

    Args:
        token: integer.
        log_probability: float, or `None` where it was not asked for.
        is_last: Whether its row gets no further one.
    """

    token: int
    log_probability: float | None
    is_last: bool


class RowNoise:
    """Numbers in [0, 1) that are a row's own: its seed and its number say them, and nothing else.

    Args:
        seed: integer.
        num_rows: integer.
    """

    def __init__(self, seed: int, num_rows: int) -> None:
        self._generators = [np.random.default_rng([seed, row]) for row in range(num_rows)]

    def draw(self) -> Array:
        """Returns the next number of each row, float32."""
        numbers = [generator.random(dtype="float32") for generator in self._generators]
        return np.asarray(numbers, "float32")


def generate_tokens(steps: CompiledSteps, request: TokenRequest) -> Iterator[list[NewToken | None]]:
    """Yields the next token of each row as soon as it is computed, `None` for a row that stopped.

    Args:
        steps: `CompiledSteps`.
        request: `TokenRequest`.

    Raises:
        InvalidInputError: The model's logits are not finite.
    """
    rows = request.prompts.rows
    longest = max(map(len, rows))
    # What runs as it is written has no use for few shapes.
    length = longest if keras.backend.backend() == "torch" else round_up(longest)
    needed = length + max(request.budgets)
    grows = holds_slots_alone(steps.model)
    capacity = first_capacity(length, needed) if grows else needed
    kind = StepKind(request.sampler.rules, request.has_log_probabilities)
    numbers, noise = request.sampler.numbers, RowNoise(request.seed, len(rows))
    token_ids, mask = request.prompts.pad(length)
    outputs, state = steps.prefill(kind, capacity)(
        None, token_ids, None if mask.all() else mask, noise.draw(), numbers
    )
    rows_left = _Rows(request)
    decode = steps.decode(kind)
    positions = np.asarray([len(row) for row in rows], "int32")
    for slot in range(length, needed + 1):
        step = to_numpy(outputs)
        yield rows_left.take(step)
        if not rows_left.are_running:
            return
        if slot == capacity:
            capacity = next_capacity(capacity, needed)
            _, state = steps.grow(capacity)(None, state)
        outputs, state = decode(state, step["tokens"], slot, positions, noise.draw(), numbers)
        positions = positions + 1


class _Rows:
    """Which rows go on, by what they have had."""

    def __init__(self, request: TokenRequest) -> None:
        self._request = request
        self._left = list(request.budgets)

    @property
    def are_running(self) -> bool:
        return any(self._left)

    def take(self, step: dict[str, Array]) -> list[NewToken | None]:
        """Returns the tokens of a step in the rows that still run, and counts them."""
        taken: list[NewToken | None] = []
        for row, token in enumerate(step["tokens"].tolist()):
            if not self._left[row]:
                taken.append(None)
                continue
            if not step["is_finite"][row]:
                raise InvalidInputError(
                    f"The model's logits of prompt {row} are not finite numbers: its weights are "
                    "damaged, or too large for its dtype policy."
                )
            self._left[row] -= 1
            if token in self._request.stop_tokens[row]:
                self._left[row] = 0
            found = step.get("log_probabilities")
            log_probability = None if found is None else float(found[row])
            taken.append(NewToken(token, log_probability, is_last=not self._left[row]))
        return taken
