"""Per-token cross entropy, token weights and weighted means, shared by the training heads."""

import math
from typing import Any

from keras import ops

from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.input_check import bound_indices, check_tokens
from keras_deepseek.layers.masks import check_mask


def compute_token_losses(logits: Any, targets: Any, z_loss: float = 0.0) -> Any:
    """Returns the cross entropy of each token, in float32 or better.

    Logits are `(..., vocabulary_size)`, targets `(...)`. The loss of an invalid target is
    meaningless; see `mark_unknown_classes`. `z_loss` is the weight of `logsumexp(logits) ** 2`,
    which is added.
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
    """Returns the gradient of `compute_token_losses` with respect to the logits.

    Logits are `(..., vocabulary_size)`, targets `(...)`, and `upstream`, the gradient by the
    losses, `(...)`.
    """
    logits = ops.cast(logits, promote_dtypes(logits.dtype, "float32"))
    upstream = ops.expand_dims(ops.cast(upstream, logits.dtype), -1)
    scale = upstream
    if z_loss:
        scale = upstream * (1 + 2 * z_loss * ops.logsumexp(logits, axis=-1, keepdims=True))
    classes = ops.arange(logits.shape[-1], dtype=targets.dtype)
    is_target = ops.equal(ops.expand_dims(targets, -1), classes)
    # The name is reused to free memory: without fusion, each step is as large as the logits.
    gradient = ops.softmax(logits, axis=-1)
    gradient = gradient * scale
    chosen = ops.take_along_axis(gradient, ops.expand_dims(targets, -1), axis=-1)
    return ops.where(is_target, chosen - upstream, gradient)


def mark_unknown_classes(losses: Any, targets: Any, weights: Any, count: int) -> Any:
    """Replaces the loss of each counted token by NaN if its target is not a valid class.

    All tensors have one shape. The weight of a token that does not count is 0.
    """
    are_classes = bound_indices(targets, count)[1]
    return ops.where(ops.logical_or(are_classes, ops.equal(weights, 0)), losses, math.nan)


def weigh_tokens(
    inputs: Any, targets: Any, dtype: str, ignore_class: int | None, sample_weight: Any, mask: Any
) -> Any:
    """Returns the weight of each token: its sample weight, or 0 if it is masked or ignored.

    Inputs are `(batch_size, ..., dim)`; targets, sample weights and mask `(batch_size, ...)`.
    Tokens whose target is `ignore_class` are ignored.
    """
    check_tokens("sample_weight", sample_weight, inputs)
    check_mask(mask, inputs)
    if sample_weight is None:
        weights = ops.ones(ops.shape(targets), dtype=dtype)
    else:
        weights = ops.cast(sample_weight, dtype)
    if mask is not None:
        weights = ops.where(mask, weights, 0.0)
    if ignore_class is not None:
        weights = ops.where(ops.equal(targets, ignore_class), 0.0, weights)
    return weights


def average_losses(losses: Any, weights: Any) -> Any:
    """Returns the weighted mean of the losses, 0 if no token counts.

    Both tensors have one shape and dtype.
    """
    total, weight = ops.sum(losses * weights), ops.sum(weights)
    is_empty = ops.equal(weight, 0)
    # `divide_no_nan` would return float32 on PyTorch.
    return ops.where(is_empty, 0.0, total / ops.where(is_empty, 1.0, weight))
