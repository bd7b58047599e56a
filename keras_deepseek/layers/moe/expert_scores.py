"""What a router computes on scores: the scores themselves, those of groups, and who was chosen."""

import math
from typing import Any

from keras import ops

_LOWEST_LOGIT = -80.0
"""Below it softplus underflows in float32, and the gradient of its root would be NaN."""

SCORINGS = {
    "sigmoid": ops.sigmoid,
    "softmax": lambda logits: ops.softmax(logits, axis=-1),
    "sqrt_softplus": lambda logits: ops.sqrt(
        ops.softplus(ops.clip(logits, _LOWEST_LOGIT, math.inf))
    ),
}
"""From the logits of all experts to their scores, all positive."""

GROUP_SCORINGS = {
    # `ops.max` refuses an empty batch on PyTorch.
    "max": lambda scores: ops.squeeze(ops.top_k(scores, 1)[0], axis=-1),
    "top2_sum": lambda scores: ops.sum(ops.top_k(scores, 2)[0], axis=-1),
}
"""From the scores of a group's experts to the score of the group."""


def hide_other_groups(scores: Any, num_groups: int, num_best: int, group_scoring: str) -> Any:
    """Returns the scores, with minus infinity for the experts outside of the best groups.

    Args:
        scores: Tensor of shape `(batch_size, ..., num_experts)`.
        num_groups: The number of groups.
        num_best: How many of them keep their scores.
        group_scoring: A name of `GROUP_SCORINGS`.
    """
    *tokens, num_experts = ops.shape(scores)
    grouped = ops.reshape(scores, (*tokens, num_groups, num_experts // num_groups))
    best = ops.top_k(GROUP_SCORINGS[group_scoring](grouped), num_best)[1]
    allowed = ops.any(expert_hits(best, num_groups), axis=-2)
    hidden = ops.where(ops.expand_dims(allowed, -1), grouped, -float("inf"))
    return ops.reshape(hidden, (*tokens, num_experts))


def expert_hits(indices: Any, num_experts: int) -> Any:
    """Returns booleans of shape `(..., num_experts_per_token, num_experts)`: who was chosen.

    An index that names no expert gives a row of `False`, which `one_hot` would not on every
    backend.

    Args:
        indices: Integer tensor of shape `(..., num_experts_per_token)`.
        num_experts: The number of experts.
    """
    return ops.equal(ops.expand_dims(indices, -1), ops.arange(num_experts, dtype=indices.dtype))
