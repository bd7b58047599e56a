"""Cross entropy of single tokens, and which of them count: what the heads that train share."""

import math
from typing import Any

from keras import ops

from keras_deepseek.layers.bounded_indices import bound_indices
from keras_deepseek.layers.double_precision import promote_dtypes


def compute_token_losses(logits: Any, targets: Any, z_loss: float = 0.0) -> Any:
    """Returns the cross entropy of each token, in float32 or better.

    Args:
        logits: Tensor of shape `(..., vocabulary_size)`.
        targets: Integer tensor of shape `(...)`. What stands for those that are no class, from 0
            below `vocabulary_size`, says `mark_unknown_classes`.
        z_loss: float. Weight of `logsumexp(logits) ** 2`, which is added. Defaults to `0.0`.
    """
    logits = ops.cast(logits, promote_dtypes(logits.dtype, "float32"))
    normalizer = ops.logsumexp(logits, axis=-1)
    labels = bound_indices(targets, logits.shape[-1])[0]
    chosen = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
    losses = normalizer - ops.squeeze(chosen, -1)
    if z_loss:
        losses = losses + z_loss * ops.square(normalizer)
    return losses


def differentiate_token_losses(
    logits: Any, targets: Any, upstream: Any, z_loss: float = 0.0
) -> Any:
    """Returns the gradient of `compute_token_losses` by the logits, in float32 or better.

    Args:
        logits: Tensor of shape `(..., vocabulary_size)`.
        targets: Integer tensor of shape `(...)`.
        upstream: Tensor of shape `(...)`, the gradient by the losses.
        z_loss: float. As there. Defaults to `0.0`.
    """
    logits = ops.cast(logits, promote_dtypes(logits.dtype, "float32"))
    upstream = ops.expand_dims(ops.cast(upstream, logits.dtype), -1)
    scale = upstream
    if z_loss:
        scale = upstream * (1 + 2 * z_loss * ops.logsumexp(logits, axis=-1, keepdims=True))
    classes = ops.arange(logits.shape[-1], dtype=targets.dtype)
    is_target = ops.equal(ops.expand_dims(targets, -1), classes)
    # One name for all: where nothing is fused, each of them is as large as the logits.
    gradient = ops.softmax(logits, axis=-1)
    gradient = gradient * scale
    chosen = ops.take_along_axis(gradient, ops.expand_dims(targets, -1), axis=-1)
    return ops.where(is_target, chosen - upstream, gradient)


def mark_unknown_classes(losses: Any, targets: Any, weights: Any, count: int) -> Any:
    """Returns losses that are NaN where a token counts and its target is no class.

    Args:
        losses: Tensor of any shape.
        targets: Integer tensor of the same shape.
        weights: Tensor of the same shape. 0 where a token does not count.
        count: integer. The number of classes.
    """
    are_classes = bound_indices(targets, count)[1]
    return ops.where(ops.logical_or(are_classes, ops.equal(weights, 0)), losses, math.nan)


def average_losses(losses: Any, weights: Any) -> Any:
    """Returns the mean by weights, 0 where no token counts.

    Args:
        losses: Tensor of any shape.
        weights: Tensor of the same shape and dtype. 0 where a token does not count.
    """
    total, weight = ops.sum(losses * weights), ops.sum(weights)
    is_empty = ops.equal(weight, 0)
    # Not by `divide_no_nan`, which ends in float32 on PyTorch.
    return ops.where(is_empty, 0.0, total / ops.where(is_empty, 1.0, weight))
