"""The compiled functions of text generation: prefill of prompts, and decode of one token.

The token loop on the host calls them, and they call the model. Caches and the set of seen tokens
are a state that stays in the backend from step to step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.compiled_functions import CompiledFunctions
from keras_deepseek.models.generation.sampler import SamplingRules
from keras_deepseek.models.generation.token_choice import choose, log_probabilities

Step = Callable[..., tuple[Any, Any]]
MakeCache = Callable[[int, int], list[dict[str, Any]]]

_ODD_LENGTHS = (10_007, 100_003)
"""Lengths so unusual that a cache axis of this size can only be the slots."""


@dataclass(frozen=True)
class StepKind:
    """The generation options that change the compiled code of a step."""

    rules: SamplingRules
    has_log_probabilities: bool = False


class CompiledSteps:
    """A cache of one `CausalLM`'s compiled generation steps."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._functions = CompiledFunctions(model)

    def get(self, key: Any, function: Callable[..., tuple[Any, Any]], *arguments: Any) -> Step:
        """Returns the compiled `function(model, *arguments, state, *inputs)`, cached if possible.

        The function returns outputs and the next state. `key` identifies the function and its
        arguments in the cache, since the values of the arguments are compiled into it.
        """

        def make() -> Step:
            compile_step = backend.current().inference.compile_with_state
            step = partial(function, self.model, *arguments)
            return compile_step(step, self.model.variables, self.model)

        step: Step = self._functions.find(key, make)
        return step

    def prefill(self, kind: StepKind, capacity: int) -> Step:
        """Returns the compiled prefill step: it reads the prompts and makes the first new tokens.

        It takes `token_ids`, `mask`, `uniforms` and `numbers`, as `begin_text` does. `capacity` is
        the number of slots of the caches that it makes.
        """
        return self.get(("prefill", kind, capacity), _prefill, kind, capacity)

    def decode(self, kind: StepKind) -> Step:
        """Returns the compiled decode step: it reads each row's last token and makes the next one.

        It takes the last tokens, their slot and positions, `uniforms` and `numbers`.
        """
        return self.get(("decode", kind), _decode, kind)

    def grow(self, capacity: int) -> Step:
        """Returns the compiled function that copies the state into caches with more slots."""
        return self.get(("grow", capacity), _grow, capacity)

    def keep_rows(self) -> Step:
        """Returns the compiled function that copies the state of some rows into a smaller batch.

        It takes the state and the indices of these rows in the batch.
        """
        return self.get("keep rows", _keep_rows)


def _keep_rows(_: Any, __: None, state: Any, indices: Any) -> tuple[Any, Any]:
    def keep(tensor: Any) -> Any:
        return None if tensor is None else ops.take(tensor, indices, axis=0)

    return (), keras.tree.map_structure(keep, state)


def _grow(model: Any, capacity: int, _: Any, state: Any) -> tuple[Any, Any]:
    return (), {**state, "cache": grow_cache(model.make_cache, state["cache"], capacity)}


def _prefill(
    model: Any,
    kind: StepKind,
    capacity: int,
    _: Any,
    token_ids: Any,
    mask: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
) -> tuple[Any, Any]:
    outputs, _, state = begin_text(
        model, kind, capacity, token_ids, mask, uniforms, numbers, num_hidden_states=1
    )
    return outputs, state


def begin_text(
    model: Any,
    kind: StepKind,
    capacity: int,
    token_ids: Any,
    mask: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
    num_hidden_states: int | None = None,
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Runs the prefill: returns the first new tokens, the prompts' hidden states, and the state.

    Args:
        model: `CausalLM`.
        kind: The options of the step.
        capacity: The number of slots of the caches.
        token_ids: Integer tensor of shape `(batch_size, length)`.
        mask: Boolean tensor of the same shape, or `None`.
        uniforms: float32 tensor of shape `(batch_size,)`. Random numbers in [0, 1).
        numbers: float32 scalars of the sampler, by name.
        num_hidden_states: The number of last tokens to return hidden states of; `None` is all.
    """
    batch_size, length = token_ids.shape
    # A cache of the prompt's length has no empty slots that attention would visit.
    grows = length < capacity and holds_only_slots(model.make_cache)
    cache = model.make_cache(batch_size, length if grows else capacity)
    logits, hidden, cache = model.call_with_cache(
        token_ids,
        cache,
        0,
        padding_mask=mask,
        positions=count_positions(mask),
        num_logits=1,
        num_hidden_states=num_hidden_states,
    )
    if grows:
        cache = grow_cache(model.make_cache, cache, capacity)
    seen_tokens = mark_tokens(token_ids, mask, logits.shape[-1]) if kind.rules.has_penalty else None
    outputs = _choose(logits[:, -1], seen_tokens, uniforms, kind, numbers)
    return outputs, hidden, {"cache": cache, "seen": seen_tokens}


def _decode(
    model: Any,
    kind: StepKind,
    state: Any,
    tokens: Any,
    slot: Any,
    positions: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
) -> tuple[Any, Any]:
    tokens = ops.expand_dims(tokens, 1)
    logits, _, cache = model.call_with_cache(
        tokens, state["cache"], slot, positions=ops.expand_dims(positions, 1), num_logits=1
    )
    seen_tokens = state["seen"]
    if kind.rules.has_penalty:
        seen_tokens = ops.logical_or(seen_tokens, mark_tokens(tokens, None, logits.shape[-1]))
    outputs = _choose(logits[:, -1], seen_tokens, uniforms, kind, numbers)
    return outputs, {"cache": cache, "seen": seen_tokens}


def _choose(
    logits: Any, seen_tokens: Any, uniforms: Any, kind: StepKind, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    outputs = choose(logits, seen_tokens, uniforms, kind.rules, numbers)
    if kind.has_log_probabilities:
        outputs["log_probabilities"] = log_probabilities(logits, outputs["tokens"])
    return outputs


def count_positions(mask: Any) -> Any:
    """Returns the positions of the tokens of left-padded prompts; `None` without padding."""
    if mask is None:
        return None
    return ops.maximum(ops.cumsum(ops.cast(mask, "int32"), axis=1) - 1, 0)


def mark_tokens(token_ids: Any, mask: Any, vocabulary_size: int) -> Any:
    """Returns which tokens each row contains, as booleans `(batch_size, vocabulary_size)`.

    Ids and mask are `(batch_size, length)`; the mask is false for tokens that do not count.
    """
    batch_size, length = token_ids.shape
    rows = ops.repeat(ops.arange(batch_size, dtype="int32"), length)
    indices = ops.stack([rows, ops.reshape(ops.cast(token_ids, "int32"), (-1,))], axis=1)
    counted = ops.ones((batch_size * length,), "int32")
    if mask is not None:
        counted = ops.cast(ops.reshape(mask, (-1,)), "int32")
    counts = ops.scatter(indices, counted, (batch_size, vocabulary_size))
    return counts > 0


def holds_only_slots(make_cache: MakeCache) -> bool:
    """Returns True if a cache holds only per-token slots, so that it can grow.

    Its slots can also be overwritten. `make_cache` takes a batch size and a number of slots.
    """
    fewer, more = _ODD_LENGTHS
    # A batch of no sequences takes no memory; only the shapes matter.
    pairs = zip(make_cache(0, fewer), make_cache(0, more), strict=True)
    return all(
        tuple(tensor.shape[:2]) == (0, fewer) and tuple(longer[name].shape[:2]) == (0, more)
        for short, longer in pairs
        for name, tensor in short.items()
    )


def grow_cache(
    make_cache: MakeCache, cache: list[dict[str, Any]], capacity: int
) -> list[dict[str, Any]]:
    """Copies a cache into a larger one, with the same tokens in its first slots.

    `holds_only_slots` must be true for `make_cache`, which made the caches.
    """
    batch_size = cache[0]["mask"].shape[0]
    write = backend.current().inference.write_slots
    return [
        {
            name: write(large[name], 0, ops.convert_to_tensor(tensor))
            for name, tensor in small.items()
        }
        for small, large in zip(cache, make_cache(batch_size, capacity), strict=True)
    ]


def to_numpy(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Copies a step's outputs to NumPy arrays."""
    return {name: np.asarray(ops.convert_to_numpy(tensor)) for name, tensor in outputs.items()}
