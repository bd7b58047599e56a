"""The acceptance rule of speculative decoding, which keeps the model's own distribution.

A draft is drawn from a distribution q, and kept with the probability min(1, p / q), where p is the
model's distribution. The first draft that is not kept is replaced by a token of the remainder,
max(p - q, 0) normalized. If all are kept, a token of p follows. A greedy draft is kept if it is the
model's choice.
"""

from typing import Any

from keras import ops

from keras_deepseek.models.generation.sampler import SamplingRules
from keras_deepseek.models.generation.token_choice import draw_by_weight


def accept_drafts(
    scores: Any,
    drafts: Any,
    draft_scores: Any,
    uniforms: Any,
    is_running: Any,
    rules: SamplingRules,
) -> tuple[Any, Any]:
    """Accepts or rejects draft tokens; returns each row's tokens, and how many all rows take.

    All rows take as many as the row that takes the fewest, so that they stay aligned. A row that
    could take more then has its draft at a place where another row has a replacement. The int32
    tokens are `(batch_size, num_drafts + 1)`; those after the taken ones have no meaning. The
    number, an int32 scalar, is at least 1.

    Args:
        scores: float32 tensor of shape `(batch_size, num_drafts + 1, vocabulary_size)`: the
            adjusted logits of the model at each place.
        drafts: int32 tensor of shape `(batch_size, num_drafts)`.
        draft_scores: float32 tensor of shape `(batch_size, num_drafts, vocabulary_size)`: the
            scores from which the drafts were drawn.
        uniforms: float32 tensor of shape `(batch_size, num_drafts + 1)`.
        is_running: Boolean tensor of shape `(batch_size,)`, false for rows that have ended and do
            not count.
        rules: The sampling rules.
    """
    num_drafts = drafts.shape[1]
    if rules.is_greedy:
        replacements = ops.cast(ops.argmax(scores, axis=-1), "int32")
        is_kept = ops.equal(replacements[:, :num_drafts], drafts)
    else:
        is_kept, replacements = _reject(scores, drafts, draft_scores, uniforms)
    prefix_mask = ops.cumprod(ops.cast(is_kept, "int32"), axis=1)
    num_kept = ops.cast(ops.sum(prefix_mask, axis=1), "int32")
    fewest = ops.min(ops.where(is_running, num_kept, num_drafts))
    steps = ops.expand_dims(ops.arange(num_drafts + 1, dtype="int32"), 0)
    padded = ops.pad(drafts, [[0, 0], [0, 1]])
    tokens = ops.where(steps < ops.expand_dims(num_kept, 1), padded, replacements)
    return tokens, fewest + 1


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
