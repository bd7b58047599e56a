"""Auxiliary losses of an expert router: load balance and the size of its logits."""

import math
from typing import Any

from keras import ops


def sequence_balance_loss(scores: Any, choices: Any, token_mask: Any) -> Any:
    """Returns `num_experts * sum(f * P)`, averaged over sequences: 1 if experts are used evenly.

    `f` is the share of a sequence's choices that fell on each expert. `P` is the mean of its
    scores, normalized to sum to 1; only `P` has a gradient. Inputs of rank two are one sequence. A
    sequence without visible tokens is left out of the mean. Scores and choices are `(batch_size,
    ..., num_experts)`; the choices of a token sum to 1. `token_mask` is `(batch_size, ...)`: 1 for
    a visible token, 0 for a masked one.
    """
    positions = tuple(range(1, len(scores.shape) - 1)) or (0,)
    probabilities = scores / (ops.sum(scores, axis=-1, keepdims=True) + 1e-20)
    tokens = ops.sum(token_mask, axis=positions)
    per_token = token_mask[..., None]
    counted = ops.clip(tokens, 1.0, math.inf)[..., None]
    share = ops.sum(choices * per_token, axis=positions) / counted
    score = ops.sum(probabilities * per_token, axis=positions) / counted
    by_sequence = scores.shape[-1] * ops.sum(share * score, axis=-1)
    num_sequences = ops.sum(ops.cast(tokens > 0, by_sequence.dtype))
    return ops.sum(by_sequence) / ops.clip(num_sequences, 1.0, math.inf)


def router_z_loss(logits: Any, token_mask: Any) -> Any:
    """Returns the mean of `logsumexp(logits) ** 2` over the visible tokens.

    Logits are `(batch_size, ..., num_experts)`. `token_mask` is `(batch_size, ...)`: 1 for a
    visible token, 0 for a masked one.
    """
    squares = ops.square(ops.logsumexp(logits, axis=-1))
    return ops.sum(squares * token_mask) / ops.clip(ops.sum(token_mask), 1.0, math.inf)
