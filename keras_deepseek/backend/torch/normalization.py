"""Batch and group normalization on PyTorch, as one function with its gradient.

Keras's operations read and write each number about ten times in each direction. Here sums over the
rows come first, for each channel; what follows computes with numbers per channel, until one
operation writes the outputs, and one or two write the gradient. PyTorch's own kernels for
channels-last inputs are no faster, and add up numbers one after the other, which loses digits.

Shapes: R rows that are normalized apart (1 for a batch), L positions, C channels, G groups.
"""

from typing import Any

import torch


def normalize(
    x: torch.Tensor, gamma: Any, beta: Any, groups: int | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns normalized values (R, L, C), and the mean and the variance of each row's channels.

    Args:
        x: Inputs (R, L, C).
        gamma: Scale (C,), or `None`.
        beta: Offset (C,), or `None`.
        groups: The number of groups of channels that are normalized together. `None`: each channel
            is normalized by itself.
        epsilon: The number that is added to the variance.
    """
    outputs, mean, variance = _Normalization.apply(x, gamma, beta, groups, epsilon)
    return outputs, mean, variance


def scale_and_shift(
    x: torch.Tensor, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float
) -> torch.Tensor:
    """Returns the values that have a mean and a variance, normalized."""
    return _scale_and_shift(x, gamma, beta, mean, variance, epsilon)[0]


def _scale_and_shift(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float
) -> tuple[Any, Any, Any]:
    """Returns the normalized values, the inverse of the deviation, and its product with gamma."""
    inverse = (variance + epsilon).rsqrt()
    scale = inverse if gamma is None else inverse * gamma
    shift = -mean * scale if beta is None else torch.addcmul(beta, mean, scale, value=-1)
    return torch.addcmul(shift, x, scale), inverse, scale


def _compute(x: Any, gamma: Any, beta: Any, groups: int | None, epsilon: float) -> tuple[Any, ...]:
    mean = _average(x.mean(1, keepdim=True), groups)
    of_squares = _average(x.square().mean(1, keepdim=True), groups)
    variance = torch.addcmul(of_squares, mean, mean, value=-1)
    return *_scale_and_shift(x, gamma, beta, mean, variance, epsilon), mean, variance


def _average(values: Any, groups: int | None) -> Any:
    """Returns the mean of each group of channels, for each of them: (R, 1, C)."""
    if groups is None:
        return values
    by_group = values.unflatten(2, (groups, -1))
    return by_group.mean(3, keepdim=True).expand_as(by_group).flatten(2)


class _Normalization(torch.autograd.Function):
    """The normalization with its gradient, and by PyTorch's operations also with the second."""

    @staticmethod
    def forward(
        ctx: Any, x: Any, gamma: Any, beta: Any, groups: int | None, epsilon: float
    ) -> tuple[Any, ...]:
        outputs, inverse, scale, mean, variance = _compute(x, gamma, beta, groups, epsilon)
        ctx.save_for_backward(x, gamma, beta, mean, inverse, scale)
        ctx.groups, ctx.epsilon = groups, epsilon
        ctx.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    def backward(ctx: Any, upstream: Any, *_: Any) -> tuple[Any, ...]:
        x, gamma, beta, mean, inverse, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            needs = ctx.needs_input_grad[:3]
            outputs = _compute(x, gamma, beta, ctx.groups, ctx.epsilon)[0]
            sources = [t for t, is_source in zip((x, gamma, beta), needs, strict=True) if is_source]
            gradients = iter(torch.autograd.grad(outputs, sources, upstream, create_graph=True))
            return *(next(gradients) if is_source else None for is_source in needs), None, None
        needs_x, needs_gamma, needs_beta, *_ = ctx.needs_input_grad
        by_shift = upstream.sum(1, keepdim=True)
        by_scale = torch.addcmul((upstream * x).sum(1, keepdim=True), mean, by_shift, value=-1)
        by_gamma = by_scale * inverse
        d_x = None
        if needs_x:
            # The gradient is linear in `upstream` and in `x`, for each row and channel.
            size = x.shape[1]
            by_x = by_gamma * (scale * inverse)
            constant = (mean * by_x).addcmul_(scale, by_shift, value=-1) / size
            if ctx.groups is not None:
                by_x, constant = _average(by_x, ctx.groups), _average(constant, ctx.groups)
            d_x = torch.addcmul(constant, upstream, scale).addcmul_(x, by_x, value=-1 / size)
        d_gamma = by_gamma.sum((0, 1)) if needs_gamma else None
        d_beta = by_shift.sum((0, 1)) if needs_beta else None
        return d_x, d_gamma, d_beta, None, None
