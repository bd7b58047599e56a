"""The functions that generation runs, compiled once for each shape: the prompt, and a token.

They stand between the loop, which counts on the host, and the model, which computes. What goes from
step to step, caches and the tokens that were seen, is a state that only the backend holds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.generation.sampler import SamplingRules
from keras_deepseek.models.generation.token_choice import choose, log_probabilities

Step = Callable[..., tuple[Any, Any]]

_ODD_LENGTHS = (10_007, 100_003)
"""No layer keeps so many things of a sequence for another reason than that it has as many slots."""


@dataclass(frozen=True)
class StepKind:
    """What a compiled step does beside calling the model.

    Args:
        rules: `SamplingRules`.
        has_log_probabilities: Whether it returns those of the tokens.
    """

    rules: SamplingRules
    has_log_probabilities: bool = False


@dataclass
class CompiledSteps:
    """The compiled functions of one model, made when they are first asked for.

    They are made anew when the model has other variables: `enable_lora` and `quantize` change them.

    Args:
        model: `CausalLM`.
    """

    model: Any
    _functions: dict[Any, Step] = field(default_factory=dict, init=False)
    _variables: tuple[int, ...] = field(default=(), init=False)

    def prefill(self, kind: StepKind, capacity: int) -> Step:
        """Returns the function of a prompt: it takes token ids, mask, uniforms and numbers.

        Args:
            kind: `StepKind`.
            capacity: integer. The slots of the caches that it makes.
        """

        def run(_: Any, token_ids: Any, mask: Any, uniforms: Any, numbers: Any) -> Any:
            return _prefill(self.model, kind, capacity, token_ids, mask, uniforms, numbers)

        return self._get(("prefill", kind, capacity), run)

    def decode(self, kind: StepKind) -> Step:
        """Returns the function of a token: it takes tokens, slot, positions, uniforms, numbers.

        Args:
            kind: `StepKind`.
        """

        def run(
            state: Any, tokens: Any, slot: Any, positions: Any, uniforms: Any, numbers: Any
        ) -> Any:
            return _decode(self.model, kind, state, tokens, slot, positions, uniforms, numbers)

        return self._get(("decode", kind), run)

    def grow(self, capacity: int) -> Step:
        """Returns the function that moves a state into caches of more slots.

        Args:
            capacity: integer.
        """

        def run(_: Any, state: Any) -> Any:
            return (), {**state, "cache": grow_cache(self.model, state["cache"], capacity)}

        return self._get(("grow", capacity), run)

    def _get(self, key: Any, function: Callable[..., Any]) -> Step:
        variables = tuple(id(variable) for variable in self.model.variables)
        if variables != self._variables:
            self._functions, self._variables = {}, variables
        if key not in self._functions:
            compiled = backend.current().compile_with_state(function, self.model.variables)
            self._functions[key] = compiled
        return self._functions[key]


def _prefill(
    model: Any,
    kind: StepKind,
    capacity: int,
    token_ids: Any,
    mask: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
) -> tuple[Any, Any]:
    batch_size, length = token_ids.shape
    # In a cache of its own length a prompt looks at no slots that are still empty.
    grows = length < capacity and holds_slots_alone(model)
    cache = model.make_cache(batch_size, length if grows else capacity)
    positions = None
    if mask is not None:
        positions = ops.maximum(ops.cumsum(ops.cast(mask, "int32"), axis=1) - 1, 0)
    logits, _, cache = model.call_with_cache(
        token_ids, cache, 0, padding_mask=mask, positions=positions, num_logits=1
    )
    if grows:
        cache = grow_cache(model, cache, capacity)
    seen = _mark(token_ids, mask, logits.shape[-1]) if kind.rules.has_penalty else None
    outputs = _choose(logits[:, -1], seen, uniforms, kind, numbers)
    return outputs, {"cache": cache, "seen": seen}


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
    seen = state["seen"]
    if kind.rules.has_penalty:
        seen = ops.logical_or(seen, _mark(tokens, None, logits.shape[-1]))
    outputs = _choose(logits[:, -1], seen, uniforms, kind, numbers)
    return outputs, {"cache": cache, "seen": seen}


def _choose(
    logits: Any, seen: Any, uniforms: Any, kind: StepKind, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    outputs = choose(logits, seen, uniforms, kind.rules, numbers)
    if kind.has_log_probabilities:
        outputs["log_probabilities"] = log_probabilities(logits, outputs["tokens"])
    return outputs


def _mark(token_ids: Any, mask: Any, vocabulary_size: int) -> Any:
    """Returns which tokens of the vocabulary each row has, `(batch_size, vocabulary_size)`."""
    batch_size, length = token_ids.shape
    rows = ops.repeat(ops.arange(batch_size, dtype="int32"), length)
    places = ops.stack([rows, ops.reshape(ops.cast(token_ids, "int32"), (-1,))], axis=1)
    counted = ops.ones((batch_size * length,), "int32")
    if mask is not None:
        counted = ops.cast(ops.reshape(mask, (-1,)), "int32")
    counts = ops.scatter(places, counted, (batch_size, vocabulary_size))
    return counts > 0


def holds_slots_alone(model: Any) -> bool:
    """Whether all that the caches of a model hold are slots, so that they can be made longer.

    Args:
        model: `CausalLM`.
    """
    fewer, more = _ODD_LENGTHS
    # Of no sequence at all: what counts are the shapes.
    pairs = zip(model.make_cache(0, fewer), model.make_cache(0, more), strict=True)
    return all(
        tuple(tensor.shape[:2]) == (0, fewer) and tuple(longer[name].shape[:2]) == (0, more)
        for short, longer in pairs
        for name, tensor in short.items()
    )


def grow_cache(model: Any, cache: list[dict[str, Any]], capacity: int) -> list[dict[str, Any]]:
    """Returns caches of more slots, with the same tokens in the first of them.

    Args:
        model: `CausalLM`.
        cache: list of dicts. `holds_slots_alone` is true of the model.
        capacity: integer. The slots of the new ones.
    """
    batch_size = cache[0]["mask"].shape[0]
    write = backend.current().write_slots
    return [
        {
            name: write(large[name], 0, ops.convert_to_tensor(tensor))
            for name, tensor in small.items()
        }
        for small, large in zip(cache, model.make_cache(batch_size, capacity), strict=True)
    ]


def to_numpy(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """Returns the outputs of a step on the host.

    Args:
        outputs: dict of tensors.
    """
    return {name: np.asarray(ops.convert_to_numpy(tensor)) for name, tensor in outputs.items()}
