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
    scale = (variance + epsilon).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return torch.addcmul(shift if beta is None else shift + beta, x, scale)


def _compute(x: Any, gamma: Any, beta: Any, groups: int | None, epsilon: float) -> tuple[Any, ...]:
    mean = _average(x.mean(1, keepdim=True), groups)
    variance = _average(x.square().mean(1, keepdim=True), groups) - mean.square()
    return scale_and_shift(x, gamma, beta, mean, variance, epsilon), mean, variance


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
        outputs, mean, variance = _compute(x, gamma, beta, groups, epsilon)
        ctx.save_for_backward(x, gamma, beta, mean, variance)
        ctx.groups, ctx.epsilon = groups, epsilon
        ctx.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    def backward(ctx: Any, upstream: Any, *_: Any) -> tuple[Any, ...]:
        x, gamma, beta, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():
            outputs, *_ = _compute(x, gamma, beta, ctx.groups, ctx.epsilon)
            sources = [tensor for tensor in (x, gamma, beta) if _needs_gradient(tensor)]
            gradients = iter(torch.autograd.grad(outputs, sources, upstream, create_graph=True))
            tensors = (x, gamma, beta)
            return *(next(gradients) if _needs_gradient(t) else None for t in tensors), None, None
        needs_x, needs_gamma, needs_beta, *_ = ctx.needs_input_grad
        inverse = (variance + ctx.epsilon).rsqrt()
        by_shift = upstream.sum(1, keepdim=True)
        by_scale = (upstream * x).sum(1, keepdim=True) - mean * by_shift
        d_gamma = (by_scale * inverse).sum((0, 1)) if needs_gamma else None
        d_beta = by_shift.sum((0, 1)) if needs_beta else None
        if not needs_x:
            return None, d_gamma, d_beta, None, None
        scale, by_inverse = inverse, by_scale
        if gamma is not None:
            scale, by_inverse = inverse * gamma, by_scale * gamma
        by_variance = by_inverse * inverse.pow(3) * (-0.5 / x.shape[1])
        by_mean = scale * by_shift * (-1 / x.shape[1]) - 2 * mean * by_variance
        by_variance, by_mean = (_average(v, ctx.groups) for v in (by_variance, by_mean))
        d_x = torch.addcmul(by_mean, upstream, scale).addcmul_(x, 2 * by_variance)
        return d_x, d_gamma, d_beta, None, None


def _needs_gradient(tensor: Any) -> bool:
    return tensor is not None and tensor.requires_grad
