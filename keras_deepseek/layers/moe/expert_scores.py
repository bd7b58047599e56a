"""Scores of experts, scores of groups of experts, and masks of the chosen experts."""

import math
from typing import Any

from keras import ops

_LOWEST_LOGIT = -80.0
"""Below this logit softplus underflows in float32, and the gradient of its root would be NaN."""

SCORINGS = {
    "sigmoid": ops.sigmoid,
    "softmax": lambda logits: ops.softmax(logits, axis=-1),
    "sqrt_softplus": lambda logits: ops.sqrt(
        ops.softplus(ops.clip(logits, _LOWEST_LOGIT, math.inf))
    ),
}
"""Functions from the logits of all experts to their positive scores."""

GROUP_SCORINGS = {
    # `ops.max` refuses an empty batch on PyTorch.
    "max": lambda scores: ops.squeeze(ops.top_k(scores, 1)[0], axis=-1),
    "top2_sum": lambda scores: ops.sum(ops.top_k(scores, 2)[0], axis=-1),
}
"""Functions from the scores of a group's experts to the score of the group."""


def hide_other_groups(scores: Any, num_groups: int, num_best: int, group_scoring: str) -> Any:
    """Sets the scores of experts outside each token's `num_best` best groups to minus infinity.

    Scores are `(..., num_experts)`; `group_scoring` is a key of `GROUP_SCORINGS`.
    """
    *tokens, num_experts = ops.shape(scores)
    grouped = ops.reshape(scores, (*tokens, num_groups, num_experts // num_groups))
    best = ops.top_k(GROUP_SCORINGS[group_scoring](grouped), num_best)[1]
    allowed = ops.any(expert_hits(best, num_groups), axis=-2)
    hidden = ops.where(ops.expand_dims(allowed, -1), grouped, -float("inf"))
    return ops.reshape(hidden, (*tokens, num_experts))


def expert_hits(indices: Any, num_experts: int) -> Any:
    """Returns a one-hot mask of chosen experts: `(..., num_experts_per_token, num_experts)`.

    An index outside the experts gives a row of `False`; `one_hot` would not on every backend.
    Indices are `(..., num_experts_per_token)`.
    """
    return ops.equal(ops.expand_dims(indices, -1), ops.arange(num_experts, dtype=indices.dtype))
