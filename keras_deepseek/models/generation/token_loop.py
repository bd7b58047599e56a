"""The loop over tokens on the host: it counts slots and rows, and runs the compiled steps.

It handles token ids only; `generation` handles the arguments and results of users.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.compiled_steps import (
    CompiledSteps,
    StepKind,
    holds_only_slots,
    to_numpy,
)
from keras_deepseek.models.generation.prompts import Prompts
from keras_deepseek.models.generation.sampler import Sampler
from keras_deepseek.models.generation.speculative_steps import (
    DraftModules,
    begin_speculation,
    continue_speculation,
    grow_speculation,
)

_STEPS_AN_OCTAVE = 4
_LEAST = 16

_IDLE_STEPS = 64
"""The steps for rows that have ended, summed over these rows, after which they leave the batch."""


def round_up(length: int) -> int:
    """Rounds a number of tokens up to a length that steps are compiled for.

    These are the multiples of 16 up to 64, and then four lengths for each doubling: at most a
    quarter of a prompt is padding.
    """
    doubling = max(length - 1, 1).bit_length() - 1
    step = max(_LEAST, (1 << doubling) // _STEPS_AN_OCTAVE)
    return -(-length // step) * step


def total_slots(needed: int, context: int | None) -> int:
    """Returns the largest number of slots that a cache will need, rounded to a compiled length.

    `needed` counts the prompts and all tokens that may come. The result is not larger than
    `context`, the longest row that the model takes, unless `needed` is.
    """
    rounded = round_up(needed)
    return rounded if context is None or needed > context else min(rounded, context)


def first_capacity(prompt_length: int, needed: int) -> int:
    """Returns the number of slots that the cache starts with.

    It is small because attention visits empty slots too. `needed` is the largest number of slots.
    """
    return min(needed, round_up(prompt_length + max(128, prompt_length // 4)))


def next_capacity(capacity: int, needed: int) -> int:
    """Returns the number of slots, at most `needed`, of the cache that replaces a full cache."""
    return min(needed, round_up(capacity + max(128, capacity // 4)))


@dataclass(frozen=True)
class TokenRequest:
    """A checked request to generate tokens: prompts, limits and sampling.

    `budgets` are the largest numbers of new tokens, and `stop_tokens` the tokens at which a row
    stops, by row. With `uses_drafts`, decoding is speculative. `context` is the number of tokens
    that the model takes, or `None` if it has no limit.
    """

    prompts: Prompts
    budgets: Sequence[int]
    stop_tokens: Sequence[frozenset[int]]
    sampler: Sampler
    seed: int
    has_log_probabilities: bool = False
    uses_drafts: bool = False
    context: int | None = None


@dataclass(frozen=True)
class NewToken:
    """A new token of one row; `is_last` if the row gets no further token.

    `log_probability` is `None` if it was not requested.
    """

    token: int
    log_probability: float | None
    is_last: bool


class RowNoise:
    """A source of random numbers in [0, 1), which depend only on the seed and the row's index.

    It draws `count` numbers at once; `None` draws one without an axis for it.
    """

    def __init__(self, seed: int, num_rows: int, count: int | None = None) -> None:
        self._generators = [np.random.default_rng([seed, row]) for row in range(num_rows)]
        self._count = count

    def draw(self) -> Array:
        """Returns each row's next random numbers, float32 `(num_rows, count)` or `(num_rows,)`."""
        drawn = [generator.random(self._count, dtype="float32") for generator in self._generators]
        return np.asarray(drawn, "float32")


def generate_tokens(steps: CompiledSteps, request: TokenRequest) -> Iterator[list[NewToken | None]]:
    """Yields each row's next token as it is computed; `None` for a row that has stopped.

    Raises an `InvalidInputError` if the model's logits are not finite.
    """
    rows = _RunningRows(request)
    compute = _speculate if request.uses_drafts else _compute_one_by_one
    for outputs, num_tokens in compute(steps, request, rows):
        rows.take(outputs, num_tokens)  # Before the next step, which reads who is running.
        yield from rows.align()
        if not any(rows.running):
            return


def _compute_one_by_one(
    steps: CompiledSteps, request: TokenRequest, rows: "_RunningRows"
) -> Iterator[tuple[dict[str, Array], Array]]:
    """Yields the outputs of each decode step, as arrays by name, and the number of tokens by row.

    The arrays are `(batch_size, 1)`, for the rows of `rows.batch`.
    """
    slots = _SlotCounter(request, can_grow=holds_only_slots(steps.model.make_cache))
    kind = StepKind(request.sampler.rules, request.has_log_probabilities)
    numbers, noise = request.sampler.numbers, RowNoise(request.seed, len(request.prompts.rows))
    outputs, state = steps.prefill(kind, slots.capacity)(None, *slots.padded, noise.draw(), numbers)
    decode = steps.decode(kind)
    while True:
        step = to_numpy(outputs)
        yield {name: array[:, None] for name, array in step.items()}, np.ones_like(step["tokens"])
        tokens, indices = step["tokens"], rows.leave()
        if indices is not None:
            tokens, (_, state) = tokens[indices], steps.keep_rows()(None, state, indices)
        if slots.need(1):
            _, state = steps.grow(slots.capacity)(None, state)
        batch = rows.batch
        # One slot for all rows: they stay aligned.
        slot, positions = int(slots.next[0]), slots.positions[batch]
        outputs, state = decode(state, tokens, slot, positions, noise.draw()[batch], numbers)
        slots.advance(np.ones_like(slots.next))


def _speculate(
    steps: CompiledSteps, request: TokenRequest, rows: "_RunningRows"
) -> Iterator[tuple[dict[str, Array], Array]]:
    """Yields what `_compute_one_by_one` does, by speculative decoding: several tokens a round.

    Each row takes the tokens that it accepts, and goes on from its own slot. A row that has ended
    stays where it is.
    """
    model = steps.model
    num_drafts = DraftModules(model).num_modules
    slots = _SlotCounter(request, can_grow=True, num_drafts=num_drafts)
    kind = StepKind(request.sampler.rules, request.has_log_probabilities)
    numbers = request.sampler.numbers
    noise = RowNoise(request.seed, len(request.prompts.rows), 2 * num_drafts + 1)
    begin = steps.get(("begin", kind, slots.capacity), begin_speculation, kind, slots.capacity)
    (outputs, num_accepted), state = begin(None, *slots.padded, noise.draw(), numbers)
    next_round = steps.get(("continue", kind), continue_speculation, kind)
    yield to_numpy(outputs), ops.convert_to_numpy(num_accepted)
    while True:
        indices = rows.leave()
        if indices is not None:
            _, state = steps.keep_rows()(None, state, indices)
        if slots.need(num_drafts + 1):
            grow = steps.get(("grow all", slots.capacity), grow_speculation, slots.capacity)
            _, state = grow(None, state)
        batch = rows.batch
        (outputs, num_accepted), state = next_round(
            state, slots.next[batch], slots.positions[batch], noise.draw()[batch], numbers
        )
        num_tokens = np.zeros_like(slots.next)
        num_tokens[batch] = ops.convert_to_numpy(num_accepted)
        yield to_numpy(outputs), num_tokens[batch]
        slots.advance(num_tokens * np.asarray(rows.running))


class _SlotCounter:
    """The cache slots that prompts and tokens use, kept on the host.

    With `can_grow`, caches can be made longer. `num_drafts` slots are written after the last token
    that stays.
    """

    def __init__(self, request: TokenRequest, *, can_grow: bool, num_drafts: int = 0) -> None:
        rows = request.prompts.rows
        longest = max(map(len, rows))
        length = round_up(longest) if backend.current().inference.compiles_by_shape() else longest
        context = None if request.context is None else request.context + num_drafts
        # Each different number of slots would be compiled, or captured in a graph, again.
        self._total = total_slots(length + max(request.budgets) + num_drafts, context)
        self.capacity = first_capacity(length, self._total) if can_grow else self._total
        self.next = np.full(len(rows), length, "int32")
        self.positions = np.asarray([len(row) for row in rows], "int32")
        token_ids, mask = request.prompts.pad(length)
        self.padded = token_ids, None if mask.all() else mask

    def need(self, number: int) -> bool:
        """Enlarges the capacity if `number` more slots do not fit; returns true if it did."""
        if self.next.max() + number <= self.capacity:
            return False
        self.capacity = next_capacity(self.capacity, self._total)
        return True

    def advance(self, numbers: Array) -> None:
        """Moves each row's next free slot on by its number of accepted tokens."""
        # Not in place: a step may still read the arrays.
        self.next = self.next + numbers
        self.positions = self.positions + numbers


class _RunningRows:
    """The rows of a request that still generate, each with the number of tokens left to it.

    The tokens of a row that is ahead wait for those of the others. `batch` has the numbers of the
    rows that the steps compute.
    """

    def __init__(self, request: TokenRequest) -> None:
        self._request = request
        self._budgets = list(request.budgets)
        self._idle_steps = 0
        self.batch = np.arange(len(self._budgets))
        self._waiting = [deque[NewToken]() for _ in self._budgets]

    @property
    def running(self) -> list[bool]:
        return [budget > 0 for budget in self._budgets]

    def leave(self) -> Array | None:
        """Takes ended rows out of the batch; returns the indices of those that stay, or `None`.

        A batch's size becomes a power of two, at most half of what it was, since each size is
        compiled. So the idle rows must have cost some steps first.
        """
        is_running = np.asarray(self.running)[self.batch]
        size = 1 << max(int(is_running.sum()) - 1, 0).bit_length()
        if 2 * size <= len(self.batch):
            self._idle_steps += len(self.batch) - size
        if self._idle_steps < _IDLE_STEPS:
            return None
        self._idle_steps = 0
        # Running rows first; ended ones fill up the size.
        indices = np.sort(np.argsort(~is_running, kind="stable")[:size])
        self.batch = self.batch[indices]
        return indices.astype("int32")

    def take(self, outputs: dict[str, Array], num_tokens: Array) -> None:
        """Takes the first tokens of the rows that are still running, and counts them.

        The outputs are `(batch_size, length)`; at each place the first `num_tokens` count.
        """
        for batch_index, row in enumerate(self.batch.tolist()):
            for index in range(num_tokens[batch_index]):
                if self._budgets[row]:
                    token = {name: array[batch_index, index] for name, array in outputs.items()}
                    self._waiting[row].append(self._take_token(row, **token))

    def _take_token(
        self, row: int, tokens: Any, is_finite: Any, log_probabilities: Any = None
    ) -> NewToken:
        if not is_finite:
            raise InvalidInputError(
                f"The model's logits for prompt {row} are not finite numbers. Its weights are "
                "damaged, or too large for its dtype policy."
            )
        token = int(tokens)
        is_stop = token in self._request.stop_tokens[row]
        self._budgets[row] = 0 if is_stop else self._budgets[row] - 1
        log_probability = None if log_probabilities is None else float(log_probabilities)
        return NewToken(token, log_probability, is_last=not self._budgets[row])

    def align(self) -> Iterator[list[NewToken | None]]:
        """Yields the next token of each row while all that are still running have one."""
        while any(self._waiting):
            pairs = list(zip(self._waiting, self.running, strict=True))
            if any(is_running and not queue for queue, is_running in pairs):
                return
            yield [queue.popleft() if queue else None for queue in self._waiting]
