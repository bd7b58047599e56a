"""The compiled steps of a model whose sequences begin, go on and end by themselves.

A cache has rows, one a sequence, and a token's slot is its position. A prompt is read in chunks
into a staging cache of its own, with a batch of one, which is then copied into a row.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.generation.generation import read_context
from keras_deepseek.models.generation.row_sampling import PromptOutputs, RowOutputs, RowSampling
from keras_deepseek.models.generation.token_choice import is_finite

Cache = list[dict[str, Any]]


class RowSteps:
    """The steps of a `CausalLM` whose cache has rows that go on by themselves.

    `make` a cache. Read a prompt by `begin` and `read`, `place` its cache into a row, and `decode`
    all rows together. The layers of the model must not change meanwhile.

    Args:
        model: `CausalLM`.
        chunk_size: integer. The number of tokens of a prompt that are read at once.
    """

    def __init__(self, model: CausalLM, *, chunk_size: int) -> None:
        self.vocabulary_size = int(model.output_shape[-1])
        self.max_length = read_context(model)
        self._model = model
        self._chunk_size = chunk_size
        self._cache: Cache = []
        self._steps: dict[Any, Callable[..., Any]] = {}
        self._runs = Counter[Any]()

    @property
    def num_compilations(self) -> int:
        """The number of compiled steps. On PyTorch a step counts until it is recorded."""
        most = backend.current().inference.calls_to_compile()
        return sum(min(number, most) for number in self._runs.values())

    # The cache of all rows.

    def make(self, rows: int, slots: int) -> None:
        """Makes a new empty cache in place of the present one."""
        _, self._cache = self._call(("make", rows, slots), _make(rows, slots), None)

    def resize(self, slots: int, sources: Sequence[int | None]) -> None:
        """Copies rows into a cache of another shape.

        `sources` has the row to copy, or `None`, for each row of the new cache.
        """
        make = _make(len(sources), slots)
        if _names(self._model.make_cache(0, slots)) - _names(self._cache):
            raise InvalidInputError(
                f"A row of {_shape(self._cache)[1]} slots can't be copied into one of {slots}: the "
                "cache of this model holds more kinds of tensors there. Use one number of slots."
            )
        indices = np.asarray([source or 0 for source in sources], "int32")
        is_copied = np.asarray([source is not None for source in sources])
        key = ("resize", _shape(self._cache), len(sources), slots)

        def copy(model: CausalLM, _: None, *inputs: Any) -> tuple[Any, Cache]:
            return (), _resize(make(model, None)[1], *inputs)

        _, self._cache = self._call(key, copy, None, self._cache, indices, is_copied)

    # A prompt.

    def begin(self, prompt_length: int) -> Cache:
        """Returns the empty staging cache of a prompt."""
        slots = self._staging_slots(prompt_length)
        cache: Cache = self._call(("begin", slots), _make(1, slots), None)[1]
        return cache

    def _staging_slots(self, prompt_length: int) -> int:
        """Returns the slots of a staging cache: a power of two of chunks, to compile few lengths.

        With more slots, a cache may hold more kinds of tensors; then all that a row has.
        """
        slots = self._chunk_size
        while slots < prompt_length or not _names(self._cache) <= _names(
            self._model.make_cache(0, slots)
        ):
            slots *= 2
        return slots

    def read(
        self,
        cache: Cache,
        token_ids: Sequence[int],
        start: int,
        *,
        sampling: RowSampling | None = None,
        prompt: Sequence[int] = (),
        uniform: float = 0.0,
        targets: Sequence[int] | None = None,
    ) -> tuple[Cache, RowOutputs | None, PromptOutputs | None]:
        """Reads a chunk of a prompt into its staging cache, which is used up.

        Args:
            cache: The staging cache.
            token_ids: The tokens of the chunk; `chunk_size` of them, unless it is the last one.
            start: The number of tokens that were read before.
            sampling: The sampling of the first token of the answer, or `None` if the chunk is not
                the last one.
            prompt: All tokens of the prompt.
            uniform: A random number in [0, 1).
            targets: The tokens that follow the tokens of the chunk, or `None` if no
                log-probabilities are needed.

        Returns:
            The next staging cache, the first token of the answer or `None`, and the
                log-probabilities of `targets` or `None`.
        """
        number, size = len(token_ids), self._chunk_size
        padded = np.zeros((1, size), "int32")
        padded[0, :number] = token_ids
        index = np.asarray([start], "int32")
        slots = cache[0]["mask"].shape[1]
        if number == size:
            outputs, cache = self._call(("read", slots), _read, cache, padded, index)
        else:
            mask = np.arange(size)[None] < number
            last = np.asarray([number - 1], "int32")
            key = ("read last", slots)
            outputs, cache = self._call(key, _read_last, cache, padded, index, mask, last)
        return cache, None if sampling is None else _to_row_outputs(outputs), None

    def place(
        self,
        cache: Cache,
        row: int,
        prompt: Sequence[int],
        sampling: RowSampling,
        first_token: int,
    ) -> None:
        """Copies the staging cache of a prompt into a row."""
        key = ("place", _shape(self._cache), _shape(cache))
        _, self._cache = self._call(key, _place, self._cache, cache, np.asarray(row, "int32"))

    # All rows.

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        is_active: Sequence[bool],
        uniforms: Sequence[float],
    ) -> RowOutputs:
        """Reads the last token of each row, and returns the next one.

        `positions` are the slots of these tokens, 0 in rows that are not active.
        """
        outputs, self._cache = self._call(
            ("decode", _shape(self._cache)),
            _decode,
            self._cache,
            np.asarray(tokens, "int32"),
            np.asarray(positions, "int32"),
            np.asarray(is_active, "bool"),
        )
        return _to_row_outputs(outputs)

    def _call(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the compiled step of a function, which gets the model first."""
        if key not in self._steps:

            def run(*inputs: Any) -> Any:
                self._runs[key] += 1  # Only while it is compiled, or not recorded.
                return function(self._model, *inputs)

            compile_step = backend.current().inference.compile_with_state
            self._steps[key] = compile_step(run, self._model.variables, self._model)
        return self._steps[key](*arguments)


def _make(rows: int, slots: int) -> Callable[..., tuple[Any, Cache]]:
    return lambda model, _: ((), model.make_cache(rows, slots))


def _names(cache: Cache) -> set[tuple[int, str]]:
    return {(layer, name) for layer, tensors in enumerate(cache) for name in tensors}


def _shape(cache: Cache) -> tuple[int, int]:
    rows, slots = cache[0]["mask"].shape
    return int(rows), int(slots)


def _positions(index: Any, length: int) -> Any:
    return ops.expand_dims(index, 1) + ops.arange(length, dtype="int32")


def _read(model: CausalLM, cache: Cache, token_ids: Any, index: Any) -> tuple[Any, Cache]:
    logits, _, cache = model.call_with_cache(
        token_ids,
        cache,
        index,
        positions=_positions(index, token_ids.shape[1]),
        num_logits=1,
        num_hidden_states=1,
    )
    return _choose_greedily(logits[:, -1]), cache


def _read_last(
    model: CausalLM, cache: Cache, token_ids: Any, index: Any, mask: Any, last: Any
) -> tuple[Any, Cache]:
    hidden, cache = model.backbone.call_with_cache(
        token_ids, cache, index, mask, _positions(index, token_ids.shape[1])
    )
    logits = model.token_logits(ops.take(hidden, last, axis=1))
    return _choose_greedily(logits[:, -1]), cache


def _decode(
    model: CausalLM, cache: Cache, tokens: Any, positions: Any, is_active: Any
) -> tuple[Any, Cache]:
    logits, _, cache = model.call_with_cache(
        ops.expand_dims(tokens, 1),
        cache,
        positions,
        padding_mask=ops.expand_dims(is_active, 1),
        positions=ops.expand_dims(positions, 1),
        num_logits=1,
    )
    return _choose_greedily(logits[:, -1]), cache


def _choose_greedily(logits: Any) -> dict[str, Any]:
    tokens = ops.cast(ops.argmax(logits, axis=-1), "int32")
    return {"tokens": tokens, "is_finite": is_finite(logits)}


def _place(_: CausalLM, cache: Cache, staging: Cache, row: Any) -> tuple[Any, Cache]:
    write = backend.current().inference.write_row
    return (), [
        {
            # The mask of the whole row: the slots behind a short prompt are those of another.
            name: write(tensor, row, _fit(small[name], tensor.shape[1], pads=name == "mask"))
            for name, tensor in large.items()
        }
        for large, small in zip(cache, staging, strict=True)
    ]


def _resize(new: Cache, old: Cache, indices: Any, is_copied: Any) -> Cache:
    def copy(name: str, tensor: Any, source: Any) -> Any:
        rows = _fit(ops.take(source, indices, axis=0), tensor.shape[1], pads=True)
        return ops.logical_and(rows, is_copied[:, None]) if name == "mask" else rows

    return [
        {name: copy(name, tensor, source[name]) for name, tensor in target.items()}
        for target, source in zip(new, old, strict=True)
    ]


def _fit(tensor: Any, length: int, *, pads: bool) -> Any:
    """Cuts the axis of slots to `length`, and with `pads` fills it up with zeros."""
    if tensor.shape[1] > length:
        return tensor[:, :length]
    missing = length - tensor.shape[1]
    if not pads or not missing:
        return tensor
    return ops.pad(tensor, [[0, 0], [0, missing], *[[0, 0]] * (len(tensor.shape) - 2)])


def _to_row_outputs(outputs: Mapping[str, Any]) -> RowOutputs:
    arrays: dict[str, Array] = {
        name: np.asarray(ops.convert_to_numpy(tensor)) for name, tensor in outputs.items()
    }
    return RowOutputs(**arrays)
