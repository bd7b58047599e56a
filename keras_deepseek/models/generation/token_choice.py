"""Choosing of the next token from logits, inside the compiled step.

A token is drawn by the inverse of the distribution function, from one number in [0, 1) for each row
that the host draws. So a row's tokens do not depend on the number of rows, or on the random
generator of the framework.
"""

import math
from collections.abc import Mapping
from typing import Any

from keras import ops

from keras_deepseek.models.generation.sampler import SamplingRules

_BLOCK_SIZE = 256
"""The number of tokens in a partial sum. One sum over a vocabulary has larger rounding errors."""

Numbers = Mapping[str, Any]


def choose(
    logits: Any, seen_tokens: Any, uniforms: Any, rules: SamplingRules, numbers: Numbers
) -> dict[str, Any]:
    """Returns the chosen token of each row, and whether its logits are finite.

    Logits and `seen_tokens` are `(batch_size, vocabulary_size)`; `seen_tokens` is true for tokens
    that a row has already, or `None` without a penalty. `uniforms` are float32 in [0, 1) of shape
    `(batch_size,)`; `numbers` are float32 scalars of the sampler. Returns int32 `"tokens"` and
    boolean `"is_finite"`, `(batch_size,)`.
    """
    scores = adjust(logits, seen_tokens, rules, numbers)
    tokens = ops.argmax(scores, axis=-1) if rules.is_greedy else draw(scores, uniforms)
    return {"tokens": ops.cast(tokens, "int32"), "is_finite": is_finite(logits)}


def is_finite(logits: Any) -> Any:
    """Returns true for each row of logits in which all values are finite."""
    # NaN and infinity show in the largest or the smallest logit.
    return ops.isfinite(ops.abs(ops.max(logits, axis=-1)) + ops.abs(ops.min(logits, axis=-1)))


def adjust(logits: Any, seen_tokens: Any, rules: SamplingRules, numbers: Numbers) -> Any:
    """Applies the sampler's penalty, temperature and cutoffs; excluded tokens get minus infinity.

    The arguments are those of `choose`. Logits are `(batch_size, vocabulary_size)`, the result
    float32.
    """
    scores = ops.cast(logits, "float32")
    if rules.has_penalty:
        scores = penalize(scores, seen_tokens, numbers["repetition_penalty"])
    if rules.is_greedy:
        return scores
    scores = divide(scores, numbers["temperature"])
    bound = _find_bound(scores, rules, numbers)
    return scores if bound is None else ops.where(scores >= bound, scores, -math.inf)


def penalize(scores: Any, seen_tokens: Any, penalty: Any) -> Any:
    """Applies a repetition penalty, a scalar or `(batch_size, 1)`, to the tokens of each row."""
    penalized = ops.where(scores < 0, scores * penalty, scores / penalty)
    return ops.where(seen_tokens, penalized, scores)


def divide(scores: Any, temperature: Any) -> Any:
    """Makes the largest score of each row 0, and divides by the temperature.

    XLA may compute a quotient twice, with different rounding, and at a low temperature the two
    would differ by more than the logits do.
    """
    return (scores - ops.max(scores, axis=-1, keepdims=True)) / temperature


def _find_bound(scores: Any, rules: SamplingRules, numbers: Numbers) -> Any:
    """Returns the smallest score with which a token of a row is kept; `None` if all are."""
    bounds = []
    ordered = None
    vocabulary_size = scores.shape[-1]
    if rules.top_k is not None and rules.top_k < vocabulary_size:
        ordered = ops.top_k(scores, rules.top_k)[0]
        # Not the last entry: XLA sorts all scores for a part of those that it took.
        bounds.append(ops.min(ordered, axis=-1, keepdims=True))
    if rules.has_top_p:
        if ordered is None:
            ordered = ops.flip(ops.sort(scores, axis=-1), axis=-1)
        is_kept = is_in_top_p(ordered, ops.softmax(ordered, axis=-1), numbers["top_p"])
        bounds.append(ops.min(ops.where(is_kept, ordered, math.inf), axis=-1, keepdims=True))
    if rules.has_min_p:
        bounds.append(ops.max(scores, axis=-1, keepdims=True) + ops.log(numbers["min_p"]))
    bound = None
    for other in bounds:
        bound = other if bound is None else ops.maximum(bound, other)
    return bound


def is_in_top_p(ordered: Any, shares: Any, top_p: Any) -> Any:
    """Returns true for the first of descending scores, until their shares sum to `top_p`."""
    preceding_share = ops.cumsum(shares, axis=-1) - shares
    # Keep the most likely token, even if rounding makes its sum negative. `ordered[:, :1]` would
    # make XLA sort all scores.
    is_first = ordered >= ops.max(ordered, axis=-1, keepdims=True)
    return ops.logical_or(preceding_share < top_p, is_first)


def draw(scores: Any, uniforms: Any) -> Any:
    """Draws one token for each row by the inverse distribution function of its scores.

    Scores are float32 logits `(batch_size, vocabulary_size)`; `uniforms` float32 `(batch_size,)`,
    in [0, 1); the tokens int32 `(batch_size,)`.
    """
    return draw_by_weight(ops.exp(scores - ops.max(scores, axis=-1, keepdims=True)), uniforms)


def draw_by_weight(weights: Any, uniforms: Any) -> Any:
    """Draws one token for each row in proportion to weights, which need not sum to 1.

    Weights, at least 0, are float32 `(batch_size, vocabulary_size)`; `uniforms` as for `draw`.
    """
    vocabulary_size = weights.shape[-1]
    size = min(_BLOCK_SIZE, vocabulary_size)
    num_blocks = -(-vocabulary_size // size)
    missing = num_blocks * size - vocabulary_size
    blocks = ops.reshape(
        ops.pad(weights, [[0, 0], [0, missing]]) if missing else weights,
        (-1, num_blocks, size),
    )
    sums = ops.sum(blocks, axis=-1)
    target = ops.expand_dims(uniforms, -1) * ops.sum(sums, axis=-1, keepdims=True)
    block, preceding_sum = _find_crossing(sums, target)
    inside = ops.squeeze(ops.take_along_axis(blocks, ops.expand_dims(block, -1), axis=1), 1)
    index, _ = _find_crossing(inside, target - preceding_sum)
    # Weights that are NaN choose the last of the padding.
    tokens = ops.minimum(block * size + index, vocabulary_size - 1)
    return ops.cast(ops.squeeze(tokens, -1), "int32")


def _find_crossing(weights: Any, target: Any) -> tuple[Any, Any]:
    """Returns the index at which each row's cumulative sum exceeds a target, and the sum before.

    Both have the shape `(batch_size, 1)`. An entry without weight is never chosen. If rounding
    leaves the target above all sums, the last entry with a weight is chosen.
    """
    sums = ops.cumsum(weights, axis=-1)
    has_weight = weights > 0
    passes = ops.logical_and(sums > target, has_weight)
    first = ops.argmax(ops.cast(passes, "int32"), axis=-1, keepdims=True)
    backwards = ops.flip(ops.cast(has_weight, "int32"), axis=-1)
    last = weights.shape[-1] - 1 - ops.argmax(backwards, axis=-1, keepdims=True)
    index = ops.where(
        ops.any(passes, axis=-1, keepdims=True), ops.cast(first, "int32"), ops.cast(last, "int32")
    )
    return index, ops.take_along_axis(sums - weights, index, axis=-1)


def log_probabilities(logits: Any, tokens: Any) -> Any:
    """Returns the log-probabilities of tokens under the model, without the sampler's changes.

    Logits are `(batch_size, vocabulary_size)`; int32 tokens and the float32 result `(batch_size,)`.
    """
    logits = ops.cast(logits, "float32")
    chosen = ops.take_along_axis(logits, ops.expand_dims(tokens, -1), axis=-1)
    return ops.squeeze(chosen, -1) - ops.logsumexp(logits, axis=-1)
