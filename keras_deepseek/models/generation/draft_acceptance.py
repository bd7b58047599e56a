"""The rule by which drafted tokens are kept: what comes out is distributed as without them.

A draft is drawn from a distribution q, and kept with the probability min(1, p / q), where p is the
model's own. In place of the first one that is not kept stands a token of the remainder, which is
max(p - q, 0) made to a distribution; where all are kept, one of p. Greedy drafts are kept where
they are what the model chooses.
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
    """Returns the tokens of each row, and how many all rows take of them.

    Rows take as many as the row that takes the fewest, so that they stay side by side: a row that
    could take more has its draft where another has the token in place of one.

    Args:
        scores: float32 tensor of shape `(batch_size, num_drafts + 1, vocabulary_size)`: the
            adjusted logits of the model, behind the drafts before each.
        drafts: int32 tensor of shape `(batch_size, num_drafts)`.
        draft_scores: float32 tensor of shape `(batch_size, num_drafts, vocabulary_size)`: those
            that the drafts were drawn by.
        uniforms: float32 tensor of shape `(batch_size, num_drafts + 1)`.
        is_running: Boolean tensor of shape `(batch_size,)`, false where a row has ended and what
            it takes does not count.
        rules: `SamplingRules`.

    Returns:
        A pair: an int32 tensor of shape `(batch_size, num_drafts + 1)`, whose tokens behind the
        taken ones have no meaning, and an int32 scalar, 1 or more.
    """
    num_drafts = drafts.shape[1]
    if rules.is_greedy:
        others = ops.cast(ops.argmax(scores, axis=-1), "int32")
        is_kept = ops.equal(others[:, :num_drafts], drafts)
    else:
        is_kept, others = _reject(scores, drafts, draft_scores, uniforms)
    kept = ops.cumprod(ops.cast(is_kept, "int32"), axis=1)
    num_kept = ops.cast(ops.sum(kept, axis=1), "int32")
    fewest = ops.min(ops.where(is_running, num_kept, num_drafts))
    places = ops.expand_dims(ops.arange(num_drafts + 1, dtype="int32"), 0)
    padded = ops.pad(drafts, [[0, 0], [0, 1]])
    tokens = ops.where(places < ops.expand_dims(num_kept, 1), padded, others)
    return tokens, fewest + 1


def _reject(scores: Any, drafts: Any, draft_scores: Any, uniforms: Any) -> tuple[Any, Any]:
    """Returns which drafts are kept, and for each place the token in place of one that is not."""
    num_drafts = drafts.shape[1]
    p, q = ops.softmax(scores, axis=-1), ops.softmax(draft_scores, axis=-1)
    index = ops.expand_dims(drafts, -1)
    ratio_p = ops.squeeze(ops.take_along_axis(p[:, :num_drafts], index, axis=-1), -1)
    ratio_q = ops.squeeze(ops.take_along_axis(q, index, axis=-1), -1)
    is_kept = uniforms[:, :num_drafts] * ratio_q < ratio_p
    rest = ops.maximum(p[:, :num_drafts] - q, 0.0)
    # Where p and q are the same but for rounding nothing is left, and nothing is rejected either.
    is_empty = ops.sum(rest, axis=-1, keepdims=True) <= 0
    rest = ops.where(is_empty, p[:, :num_drafts], rest)
    weights = ops.concatenate([rest, p[:, num_drafts:]], axis=1)
    # One number draws in all places, of which one alone is used.
    others = [
        draw_by_weight(weights[:, place], uniforms[:, num_drafts])
        for place in range(num_drafts + 1)
    ]
    return is_kept, ops.stack(others, axis=1)
