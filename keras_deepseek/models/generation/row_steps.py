"""The compiled steps of a model whose sequences begin, go on and end by themselves.

A cache has rows, one a sequence, and a token's slot is its position. A prompt is read in chunks
into a staging cache of its own, with a batch of one, which is then copied into a row.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.call_context import make_batch_invariant
from keras_deepseek.backend.protocols.inference import CompiledStep
from keras_deepseek.backend.tensor_values import count_bytes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.generation.compiled_steps import holds_only_slots, to_numpy
from keras_deepseek.models.generation.generation import read_context
from keras_deepseek.models.generation.row_choice import (
    History,
    make_history,
    stack_numbers,
    start_history,
)
from keras_deepseek.models.generation.row_functions import (
    Cache,
    State,
    choose,
    decode,
    find_names,
    make_rows,
    make_staging,
    place_row,
    read,
    read_with_mask,
    resize_rows,
    score,
)
from keras_deepseek.models.generation.row_sampling import ChoiceKind, find_kind
from keras_deepseek.text.row_model import LogProbabilities, RowModel, RowOutputs
from keras_deepseek.text.sampling import SamplingOptions

_SCORED_TOKENS = 32
"""The tokens of a prompt whose logits are computed at once for log-probabilities."""

_GREEDY = SamplingOptions(temperature=0.0)

_SAMPLINGS = (
    SamplingOptions(),
    SamplingOptions(top_k=1),
    SamplingOptions(top_p=0.999999),
    SamplingOptions(logprobs=0),
    SamplingOptions(logprobs=0, top_p=0.999999),
)
"""Samplings that run every step that chooses tokens. For `top_p` even logits need all sorted."""


class RowSteps(RowModel):
    """The steps of a `CausalLM` whose cache has rows that go on by themselves.

    The layers of the model must not change meanwhile.

    Args:
        model: `CausalLM`.
        chunk_size: The number of tokens of a prompt that are read at once.
        batch_invariant: If true, a row has the same bits whatever runs beside it. The cache keeps
            one shape, and a step may take longer.
    """

    def __init__(self, model: CausalLM, *, chunk_size: int, batch_invariant: bool = False) -> None:
        super().__init__(int(model.output_shape[-1]), read_context(model))
        self._model = model
        self._recorded: keras.Model | None = model
        self._chunk_size = chunk_size
        self._holds_only_slots = holds_only_slots(model.make_cache)
        self._is_batch_invariant = batch_invariant
        self._state: State = {"cache": [], "history": {}}
        self._samplings: list[SamplingOptions | None] = []
        self._steps: dict[Any, CompiledStep] = {}
        self._names: dict[int, set[tuple[int, str]]] = {}

    @property
    def num_compilations(self) -> int:
        return sum(step.count_compilations() for step in list(self._steps.values()))

    # The cache of all rows.

    def count_bytes(self, rows: int, slots: int) -> int:
        """Returns the bytes of a cache, of which nothing is made."""
        layers = self._model.make_cache(0, slots)
        dtype = keras.backend.standardize_dtype
        return count_bytes(
            [
                keras.KerasTensor((rows, *tensor.shape[1:]), dtype(tensor.dtype))
                for tensors in layers
                for tensor in tensors.values()
            ]
        )

    def make(self, rows: int, slots: int) -> None:
        _, self._state = self._call(("make", rows, slots), make_rows(rows, slots), None)
        self._samplings = [None] * rows

    def resize(self, slots: int, sources: Sequence[int | None]) -> None:
        if self._names_at(slots) - find_names(self._cache):
            raise InvalidInputError(
                f"A row of {self._shape[1]} slots can't be copied into one of {slots}: the cache "
                "of this model holds more kinds of tensors there. Use one number of slots."
            )
        if self._is_batch_invariant and (len(sources), slots) != self._shape:
            raise InvalidInputError("With `batch_invariant` the cache must keep its shape.")
        rows, (old_rows, old_slots) = len(sources), self._shape
        if rows != old_rows and slots != old_slots:
            # One after the other, so that there are fewer pairs of shapes, all of them compiled.
            if slots < old_slots:
                self.resize(slots, range(old_rows))
            else:
                self.resize(old_slots, sources)
                sources = range(rows)
        indices = np.asarray([source or 0 for source in sources], "int32")
        is_copied = np.asarray([source is not None for source in sources])
        key, resize = ("resize", self._shape, rows, slots), resize_rows(rows, slots)
        _, self._state = self._call(key, resize, None, self._state, indices, is_copied)
        self._samplings = [
            None if source is None else self._samplings[source] for source in sources
        ]

    def resizable_slots(self, slots: Sequence[int]) -> list[int]:
        """Returns those numbers of slots among which rows may be resized, the last one included.

        Caches of fewer slots may lack some of the tensors.
        """
        names = [self._names_at(number) for number in slots]
        return [number for number, cache in zip(slots, names, strict=True) if cache == names[-1]]

    def _names_at(self, slots: int) -> set[tuple[int, str]]:
        """Returns the names of the tensors of a cache of so many slots."""
        if slots not in self._names:
            self._names[slots] = find_names(self._model.make_cache(0, slots))
        return self._names[slots]

    @property
    def _cache(self) -> Cache:
        cache: Cache = self._state["cache"]
        return cache

    @property
    def _shape(self) -> tuple[int, int]:
        rows, slots = self._cache[0]["mask"].shape
        return int(rows), int(slots)

    # A prompt.

    def begin(self, prompt_length: int) -> Cache:
        slots = self._staging_slots(prompt_length)
        cache: Cache = self._call(("begin", slots), make_staging(slots), None)[1]
        return cache

    def _staging_slots(self, prompt_length: int) -> int:
        """Returns the slots of a staging cache: a power of two of chunks, to compile few lengths.

        With more slots, a cache may hold more kinds of tensors; then all that a row has.
        """
        slots = self._chunk_size
        names = find_names(self._cache)
        while slots < prompt_length or not names <= self._names_at(slots):
            slots *= 2
        return slots

    def _read_size(self, slots: int) -> int:
        """Returns the number of tokens that are read at once into so many slots, with padding."""
        return self._chunk_size

    def read(
        self,
        cache: Cache,
        token_ids: Sequence[int],
        start: int,
        *,
        sampling: SamplingOptions | None = None,
        prompt: Sequence[int] = (),
        uniform: float = 0.0,
        targets: Sequence[int] | None = None,
    ) -> tuple[Cache, RowOutputs | None, LogProbabilities | None]:
        slots = cache[0]["mask"].shape[1]
        size = chunk_size = self._read_size(slots)
        if sampling is not None and targets is None and self._can_overlap(size):
            token_ids, start, size = _fit_last_chunk(token_ids, start, prompt, size)
        number = len(token_ids)
        padded = np.asarray([[*token_ids, *[0] * (size - number)]], "int32")
        index = np.asarray([start], "int32")
        is_large = 2 * size >= chunk_size  # Smaller ones are compiled with a mask alone.
        if number == size and targets is None and is_large:
            outputs, cache = self._call(("read", size, slots), read, cache, padded, index)
        else:
            mask, last = np.arange(size)[None] < number, np.asarray([number - 1], "int32")
            key = ("read with a mask", size, slots)
            outputs, cache = self._call(key, read_with_mask, cache, padded, index, mask, last)
        hidden, answer = outputs.pop("hidden", None), None
        if sampling is not None:
            history = {}
            if self._is_batch_invariant or find_kind(sampling) is ChoiceKind.ALL:
                arrays = start_history(prompt, sampling.logit_bias, self.vocabulary_size)
                history = {name: ops.convert_to_tensor(array) for name, array in arrays.items()}
            # No token of the answer has been read.
            answer_read = np.zeros(1, "int32"), np.zeros(1, "bool")
            answer, _ = self._choose(outputs, [sampling], [uniform], history, *answer_read)
        return cache, answer, None if targets is None else self._score(hidden, targets)

    def _can_overlap(self, size: int) -> bool:
        """Returns True if a chunk of a size may write slots again that were written before."""
        return self._holds_only_slots and size == self._chunk_size

    def _score(self, hidden: Any, targets: Sequence[int]) -> LogProbabilities:
        """Returns the log-probabilities of the tokens that follow the first of a chunk."""
        number, size = len(targets), hidden.shape[1]
        block = math.gcd(_SCORED_TOKENS, size)
        padded = np.asarray([*targets, *[0] * (size - number)], "int32")
        pieces: list[dict[str, Array]] = []
        for start in range(0, max(number, 1), block):
            indices = np.arange(start, start + block, dtype="int32")
            outputs, _ = self._call(("score", size), score, (), hidden, indices, padded[indices])
            pieces.append(to_numpy(outputs))
        joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return LogProbabilities(**{name: array[:number] for name, array in joined.items()})

    def place(
        self, cache: Cache, row: int, prompt: Sequence[int], sampling: SamplingOptions
    ) -> None:
        # The first token of the answer counts when it is decoded.
        history = start_history(prompt, sampling.logit_bias, self.vocabulary_size)
        small = {"cache": cache, "history": history}
        key = ("place", self._shape, cache[0]["mask"].shape[1])
        _, self._state = self._call(key, place_row, self._state, small, np.asarray(row, "int32"))
        self._samplings[row] = sampling

    # All rows.

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        is_active: Sequence[bool],
        uniforms: Sequence[float],
    ) -> RowOutputs:
        inputs = np.asarray(tokens, "int32"), np.asarray(is_active, "bool")
        key = ("decode", self._shape)
        slots = np.asarray(positions, "int32")
        outputs, cache = self._call(key, decode, self._cache, *inputs, slots)
        self._state = {**self._state, "cache": cache}
        samplings = [
            sampling if active else None
            for sampling, active in zip(self._samplings, is_active, strict=True)
        ]
        history = self._state["history"]
        answer, history = self._choose(outputs, samplings, uniforms, history, *inputs)
        self._state = {**self._state, "history": history}
        return answer

    def _choose(
        self,
        outputs: dict[str, Any],
        samplings: Sequence[SamplingOptions | None],
        uniforms: Sequence[float],
        history: History,
        tokens: Array,
        is_active: Array,
    ) -> tuple[RowOutputs, History]:
        """Chooses the next token of rows, after those that they have just read.

        Returns the next history too.
        """
        logits = outputs.pop("logits")
        kinds = (find_kind(sampling) for sampling in samplings if sampling is not None)
        kind = max(kinds, default=ChoiceKind.GREEDY)
        if kind is ChoiceKind.GREEDY:
            return RowOutputs(**to_numpy(outputs)), history
        if self._is_batch_invariant:
            kind = ChoiceKind.ALL  # Others may round otherwise.
        numbers = stack_numbers(samplings, self.vocabulary_size)
        inputs = logits, np.asarray(uniforms, "float32"), numbers, tokens
        chosen, history = self._call_choice(kind, history, *inputs, is_active)
        arrays = to_numpy(chosen)
        is_exact = arrays.pop("is_exact", np.ones(1, "bool"))
        if not is_exact.all():
            # The tokens of the rows are counted already.
            exact, history = self._call_choice(
                kind, history, *inputs, np.zeros_like(is_active), sorts_all=True
            )
            arrays = {
                name: np.where(is_exact.reshape(-1, *[1] * (array.ndim - 1)), arrays[name], array)
                for name, array in to_numpy(exact).items()
                if name in arrays
            }
        is_finite = to_numpy(outputs)["is_finite"]
        return RowOutputs(is_finite=is_finite, **arrays), history

    def _call_choice(
        self, kind: ChoiceKind, history: History, *inputs: Any, sorts_all: bool = False
    ) -> tuple[dict[str, Any], History]:
        key = ("choose", kind, len(inputs[-1]), sorts_all)
        function = partial(choose, kind, sorts_all)
        if kind is not ChoiceKind.ALL:
            return self._call(key, function, (), *inputs)[0], history
        chosen, history = self._call(key, function, history, *inputs)
        return chosen, history

    def _call(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the compiled step of a function, which gets the model first."""
        self._model.mapped_weights.prepare_decoding()
        if key not in self._steps:
            compile_step = backend.current().inference.compile_with_state
            step = partial(function, self._model)
            self._steps[key] = compile_step(step, self._model.variables, self._recorded)
        with make_batch_invariant(value=self._is_batch_invariant):
            return self._steps[key](*arguments)

    # Before the first request.

    def warm_up(
        self, shapes: Sequence[tuple[int, int]], report: Callable[[int, int], None]
    ) -> None:
        self.make(*shapes[0])
        calls = backend.current().inference.calls_to_compile()
        times = calls if self._recorded is not None else 1
        jobs = list(self._list_jobs(shapes)) * times
        for number, job in enumerate(jobs):
            job()
            report(number + 1, len(jobs))
        self.make(*shapes[0])

    def _list_jobs(self, shapes: Sequence[tuple[int, int]]) -> Iterator[Callable[[], Any]]:
        """Yields functions that run each step once."""
        for source, shape in itertools.permutations(shapes, 2):
            if source[0] == shape[0] or source[1] == shape[1]:
                yield partial(self._try_resize, source, shape)
        lengths = self._list_lengths(max(slots for _, slots in shapes))
        for length in (lengths[0], *lengths):  # The first call of a layer may change attributes.
            yield partial(self._try_prompt, length)
        for shape in shapes:
            yield partial(self._try_rows, shape)
        for rows, sampling in itertools.product({1, *(rows for rows, _ in shapes)}, _SAMPLINGS):
            yield partial(self._try_choice, rows, sampling)

    def _list_lengths(self, slots: int) -> list[int]:
        """Returns the slots of the staging caches of all prompts that fit into so many slots."""
        lengths = [self._staging_slots(1)]
        while lengths[-1] < min(slots, self.max_length or slots):
            lengths.append(self._staging_slots(2 * lengths[-1]))
        return lengths

    def _try_resize(self, source: tuple[int, int], shape: tuple[int, int]) -> None:
        self.make(*source)
        self.resize(shape[1], [0] * shape[0])

    def _try_prompt(self, length: int) -> None:
        """Runs the steps of a prompt that is read into a staging cache of this length."""
        cache, size = self.begin(length), self._read_size(length)
        cache, _, _ = self.read(cache, [1] * size, 0)
        self.read(cache, [1] * size, length - size, targets=[1])
        if self._can_overlap(size):
            numbers = [length]
            if length == size:  # Here, prompts of a part of a chunk are read, too.
                numbers += [math.ceil(size / part) for part in (2, 4, 8)]
                numbers.append(max(size // 2 - 1, 1))
            for prompt in [[1] * number for number in numbers]:
                half = prompt[: size // 2]
                self.read(self.begin(length), half, 0, sampling=_GREEDY, prompt=prompt)

    def _try_rows(self, shape: tuple[int, int]) -> None:
        """Runs the steps of a cache of this shape."""
        self.make(*shape)
        for length in self._list_lengths(shape[1]):
            self.place(self.begin(length), 0, [1], _GREEDY)
        rows = shape[0]
        self.decode([1] * rows, [1] * rows, [True] * rows, [0.0] * rows)

    def _try_choice(self, rows: int, sampling: SamplingOptions) -> None:
        """Runs the steps that choose tokens from even logits."""
        logits = ops.zeros((rows, self.vocabulary_size))
        outputs = {"logits": logits, "is_finite": ops.ones((rows,), "bool")}
        tokens = np.zeros(rows, "int32"), np.ones(rows, "bool")
        history = make_history(rows, self.vocabulary_size)
        self._choose(outputs, [sampling] * rows, [0.5] * rows, history, *tokens)


def _fit_last_chunk(
    token_ids: Sequence[int], start: int, prompt: Sequence[int], size: int
) -> tuple[Sequence[int], int, int]:
    """Returns the tokens to read last, the number of those before, and the size of the chunk.

    A short remainder takes half a chunk, and a short prompt an eighth of it. If the prompt is long
    enough, the chunk begins among tokens that were read already, so that it has no padding: their
    slots get the same numbers.
    """
    least = size // 2 if start else math.ceil(size / 8)
    while size // 2 >= max(least, len(token_ids)):
        size //= 2
    if len(prompt) < size:
        return token_ids, start, size
    start = len(prompt) - size
    return prompt[start:], start, size
