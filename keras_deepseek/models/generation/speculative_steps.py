"""The compiled functions of speculative decoding, with drafts from modules that predict ahead.

In a round the model reads the last token and the drafts after it at once, and decides which of them
stay. A draft is drawn from a distribution q, and kept with the probability min(1, p / q), where p
is the model's distribution. The first draft that is not kept is replaced by a token of the
remainder, max(p - q, 0) normalized. If all are kept, a token of p follows. A greedy draft is kept
if it is the model's choice. So the distribution of tokens is the model's own.

The modules then read the tokens that stayed, and make the next drafts. Both caches are overwritten
from the first slot that did not stay, so they must hold only slots. Each row goes on from its own
slot.

Slot `i` of a module holds its result for the model's hidden states at `i` and a later token: the
next one for the first module, the second next for the second module, and so on.
"""

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from keras_deepseek.errors import NotSupportedError
from keras_deepseek.layers.attention.compressed.token_packing import take_rows
from keras_deepseek.layers.position.start_index import by_row
from keras_deepseek.models.generation.compiled_steps import (
    StepKind,
    begin_text,
    count_positions,
    grow_cache,
    holds_only_slots,
    mark_tokens,
)
from keras_deepseek.models.generation.sampler import SamplingRules
from keras_deepseek.models.generation.token_choice import (
    adjust,
    draw,
    draw_by_weight,
    is_finite,
    log_probabilities,
)


class DraftModules:
    """The multi-token prediction modules of a `CausalLM`, used to draft tokens."""

    def __init__(self, model: Any) -> None:
        self._prediction = model.multi_token_prediction
        self.num_modules = self._prediction.depth

    def make_cache(self, batch_size: int, max_length: int) -> list[dict[str, Any]]:
        """Returns one empty cache for each prediction module."""
        return [block.make_cache(batch_size, max_length) for block in self._prediction.blocks]

    def draft(
        self,
        hidden: Any,
        token_ids: Any,
        cache: list[dict[str, Any]],
        slot: Any,
        last: Any,
        sample: Callable[[int, Any], tuple[Any, Any]],
        **kwargs: Any,
    ) -> tuple[Any, Any, list[dict[str, Any]]]:
        """Drafts one token per prediction module; returns drafts, their scores, and the caches.

        Args:
            hidden: Tensor of shape `(batch_size, length, dim)`: the model's hidden states.
            token_ids: int32 tensor of shape `(batch_size, length)`: the next token at each place.
            cache: The caches of the modules.
            slot: The slot of the first of these tokens, an integer or one each.
            last: The index of the last of these tokens that stays, an integer or one each.
            sample: Function from the index of a module and logits `(batch_size, vocabulary_size)`
                to tokens and scores.
            **kwargs: `mask` and `positions` of the blocks.
        """
        steps, last = ops.arange(token_ids.shape[1], dtype="int32"), by_row(last)
        drafts, scores, written = [], [], []
        for index in range(self.num_modules):
            hidden, module_cache = self._prediction.call_module(
                index, hidden, token_ids, cache=cache[index], cache_index=slot, **kwargs
            )
            written.append(module_cache)
            logits = self._prediction.compute_logits(index, take_rows(hidden, last))[:, 0]
            token, score = sample(index, logits)
            drafts.append(token)
            scores.append(score)
            # The next module reads one token further: shift the tokens, and end with the draft.
            token_ids = ops.where(
                steps < last, ops.roll(token_ids, -1, axis=1), ops.expand_dims(token, 1)
            )
        return ops.stack(drafts, axis=1), ops.stack(scores, axis=1), written


def begin_speculation(
    model: Any,
    kind: StepKind,
    capacity: int,
    _: Any,
    token_ids: Any,
    mask: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Runs the prefill of speculative decoding, and makes the first drafts.

    Returns the outputs with each row's number of tokens to take, as `continue_speculation` does,
    and the first state.

    Args:
        model: `CausalLM`.
        kind: The options of the step.
        capacity: The number of slots of the caches.
        _: `None`, as there is no state yet.
        token_ids: int32 tensor of shape `(batch_size, length)`.
        mask: Boolean tensor of the same shape, or `None`.
        uniforms: float32 tensor of shape `(batch_size, 2 * num_drafts + 1)`.
        numbers: float32 scalars of the sampler, by name.
    """
    modules = DraftModules(model)
    batch_size, length = token_ids.shape
    token_ids = ops.cast(token_ids, "int32")
    outputs, hidden, state = begin_text(
        model, kind, capacity, token_ids, mask, uniforms[:, 0], numbers
    )
    token = outputs["tokens"]
    sample = _make_sample(kind, state["seen"], token, uniforms[:, 1:], numbers)
    drafts, scores, draft_cache = modules.draft(
        hidden,
        ops.concatenate([token_ids[:, 1:], ops.expand_dims(token, 1)], axis=1),
        modules.make_cache(batch_size, length),
        slot=0,
        last=length - 1,
        sample=sample,
        mask=mask,
        positions=count_positions(mask),
    )
    if capacity > length:
        draft_cache = grow_cache(modules.make_cache, draft_cache, capacity)
    state["draft_cache"] = draft_cache
    outputs = {name: ops.expand_dims(tensor, 1) for name, tensor in outputs.items()}
    num_tokens = ops.ones_like(token)  # The drafts are verified in the next round.
    return (outputs, num_tokens), {**state, "token": token, "drafts": drafts, "scores": scores}


def continue_speculation(
    model: Any,
    kind: StepKind,
    state: Mapping[str, Any],
    slot: Any,
    positions: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Verifies drafts and makes new ones: returns the tokens, how many to take, and the state.

    Args:
        model: `CausalLM`.
        kind: The options of the step.
        state: The state of the last round.
        slot: int32 tensor of shape `(batch_size,)`. The slot of each row's last token, which the
            model has yet to read.
        positions: int32 tensor of shape `(batch_size,)`. The position of that token.
        uniforms: float32 tensor of shape `(batch_size, 2 * num_drafts + 1)`.
        numbers: float32 scalars of the sampler, by name.
    """
    modules, drafts = DraftModules(model), ops.convert_to_tensor(state["drafts"])
    num_drafts = modules.num_modules
    # The tokens that the model reads at once: the last one that stayed, and the drafts after it.
    read = ops.concatenate([ops.expand_dims(state["token"], 1), drafts], axis=1)
    positions = ops.expand_dims(positions, 1) + ops.arange(num_drafts + 1, dtype="int32")
    logits, hidden, cache = model.call_with_cache(
        read, state["cache"], slot, positions=positions, num_logits=num_drafts + 1
    )
    tokens, num_accepted = accept_drafts(
        _score_places(kind, state["seen"], read, logits, numbers),
        drafts,
        state["scores"],
        uniforms[:, : num_drafts + 1],
        kind.rules,
    )
    seen_tokens = state["seen"]
    if kind.rules.has_penalty:
        seen_tokens = _mark_round(seen_tokens, read, tokens, num_accepted, logits.shape[-1])
    outputs = {"tokens": tokens, "is_finite": is_finite(logits)}
    if kind.has_log_probabilities:
        logs = [log_probabilities(logits[:, i], tokens[:, i]) for i in range(num_drafts + 1)]
        outputs["log_probabilities"] = ops.stack(logs, axis=1)
    # The last token that each row takes.
    token = ops.squeeze(take_rows(tokens, by_row(num_accepted - 1)), 1)
    sample = _make_sample(kind, seen_tokens, token, uniforms[:, num_drafts + 1 :], numbers)
    drafts, draft_scores, draft_cache = modules.draft(
        hidden, tokens, state["draft_cache"], slot, num_accepted - 1, sample, positions=positions
    )
    state = {"cache": cache, "draft_cache": draft_cache, "seen": seen_tokens}
    return (outputs, num_accepted), {
        **state,
        "token": token,
        "drafts": drafts,
        "scores": draft_scores,
    }


def _score_places(
    kind: StepKind, seen_tokens: Any, read: Any, logits: Any, numbers: Mapping[str, Any]
) -> Any:
    """Returns the sampler's scores after each token read, as if all drafts were accepted."""
    scores = []
    for step in range(read.shape[1]):
        seen_tokens = _add_seen(kind, seen_tokens, read[:, step], logits.shape[-1])
        scores.append(adjust(logits[:, step], seen_tokens, kind.rules, numbers))
    return ops.stack(scores, axis=1)


def _mark_round(
    seen_tokens: Any, read: Any, tokens: Any, num_accepted: Any, vocabulary_size: int
) -> Any:
    """Marks a round's tokens as seen: the last token of the previous round, and those taken."""
    is_taken = ops.arange(tokens.shape[1], dtype="int32") < by_row(num_accepted)
    newly = mark_tokens(tokens, is_taken, vocabulary_size)
    first = mark_tokens(read[:, :1], None, vocabulary_size)
    return ops.logical_or(ops.logical_or(seen_tokens, first), newly)


def _make_sample(
    kind: StepKind, seen_tokens: Any, token: Any, uniforms: Any, numbers: Mapping[str, Any]
) -> Callable[[int, Any], tuple[Any, Any]]:
    """Returns a function that draws a module's draft token by the model's sampling rules."""

    def sample(index: int, logits: Any) -> tuple[Any, Any]:
        nonlocal seen_tokens, token
        seen_tokens = _add_seen(kind, seen_tokens, token, logits.shape[-1])
        scores = adjust(logits, seen_tokens, kind.rules, numbers)
        if kind.rules.is_greedy:
            token = ops.cast(ops.argmax(scores, axis=-1), "int32")
        else:
            token = draw(scores, uniforms[:, index])
        return token, scores

    return sample


def _add_seen(kind: StepKind, seen_tokens: Any, tokens: Any, vocabulary_size: int) -> Any:
    if not kind.rules.has_penalty:
        return None
    return ops.logical_or(
        seen_tokens, mark_tokens(ops.expand_dims(tokens, 1), None, vocabulary_size)
    )


def grow_speculation(model: Any, capacity: int, _: Any, state: Any) -> tuple[Any, Any]:
    """Copies the state of speculative decoding into caches with more slots.

    The outputs that it returns with the state are empty.
    """
    grown = {
        "cache": grow_cache(model.make_cache, state["cache"], capacity),
        "draft_cache": grow_cache(DraftModules(model).make_cache, state["draft_cache"], capacity),
    }
    return (), {**state, **grown}


def check_drafts(model: Any) -> None:
    """Raises an error if a model can't do speculative decoding.

    It then has no modules that predict further tokens, or a cache that can't remove tokens.
    """
    if model.multi_token_prediction is None:
        raise NotSupportedError(
            "`use_drafts=True` needs modules that predict further tokens, and this model has none. "
            "If the checkpoint has them, load them with `from_preset(folder, "
            "num_prediction_layers=1)`. Otherwise leave `use_drafts` out."
        )
    makers = (model.make_cache, DraftModules(model).make_cache)
    if not all(holds_only_slots(make_cache) for make_cache in makers):
        raise NotSupportedError(
            "`use_drafts=True` needs caches from which rejected drafts can be removed, and this "
            "model's caches can't remove tokens. Leave `use_drafts` out."
        )


def accept_drafts(
    scores: Any,
    drafts: Any,
    draft_scores: Any,
    uniforms: Any,
    rules: SamplingRules,
) -> tuple[Any, Any]:
    """Accepts or rejects draft tokens; returns each row's tokens, and how many of them it takes.

    The int32 tokens are `(batch_size, num_drafts + 1)`; those after the taken ones have no meaning.
    The numbers, int32 of shape `(batch_size,)`, are at least 1.

    Args:
        scores: float32 tensor of shape `(batch_size, num_drafts + 1, vocabulary_size)`: the
            adjusted logits of the model at each place.
        drafts: int32 tensor of shape `(batch_size, num_drafts)`.
        draft_scores: float32 tensor of shape `(batch_size, num_drafts, vocabulary_size)`: the
            scores from which the drafts were drawn.
        uniforms: float32 tensor of shape `(batch_size, num_drafts + 1)`.
        rules: The sampling rules.
    """
    num_drafts = drafts.shape[1]
    if rules.is_greedy:
        replacements = ops.cast(ops.argmax(scores, axis=-1), "int32")
        is_kept = ops.equal(replacements[:, :num_drafts], drafts)
    else:
        is_kept, replacements = _reject(scores, drafts, draft_scores, uniforms)
    # 1 for drafts before the first that is rejected.
    prefix_mask = ops.cumprod(ops.cast(is_kept, "int32"), axis=1)
    num_kept = ops.cast(ops.sum(prefix_mask, axis=1), "int32")
    steps = ops.expand_dims(ops.arange(num_drafts + 1, dtype="int32"), 0)
    # Drafts up to a row's first rejected one, then its replacement. The pad is never read.
    padded_drafts = ops.pad(drafts, [[0, 0], [0, 1]])
    tokens = ops.where(steps < ops.expand_dims(num_kept, 1), padded_drafts, replacements)
    return tokens, num_kept + 1


def _reject(scores: Any, drafts: Any, draft_scores: Any, uniforms: Any) -> tuple[Any, Any]:
    """Returns which draft tokens are kept, and a replacement token for each position."""
    num_drafts = drafts.shape[1]
    p, q = ops.softmax(scores, axis=-1), ops.softmax(draft_scores, axis=-1)
    index = ops.expand_dims(drafts, -1)
    ratio_p = ops.squeeze(ops.take_along_axis(p[:, :num_drafts], index, axis=-1), -1)
    ratio_q = ops.squeeze(ops.take_along_axis(q, index, axis=-1), -1)
    is_kept = uniforms[:, :num_drafts] * ratio_q < ratio_p
    residual = ops.maximum(p[:, :num_drafts] - q, 0.0)
    # If p and q differ only by rounding, nothing is left, and nothing is rejected.
    is_empty = ops.sum(residual, axis=-1, keepdims=True) <= 0
    residual = ops.where(is_empty, p[:, :num_drafts], residual)
    weights = ops.concatenate([residual, p[:, num_drafts:]], axis=1)
    # One number is enough for all places, since only one of them is used.
    replacements = [
        draw_by_weight(weights[:, step], uniforms[:, num_drafts]) for step in range(num_drafts + 1)
    ]
    return is_kept, ops.stack(replacements, axis=1)
