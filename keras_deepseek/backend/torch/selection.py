"""The largest numbers of many."""

from typing import Any

import torch


def top_k(values: Any, k: int) -> tuple[Any, Any]:
    """Returns the largest along the last axis and int32 indices; of equals, the first."""
    # By `torch.topk` alone, which of equal numbers are taken depends on how many others there are.
    if values.dtype == torch.float32:
        indices = torch.topk(_make_keys(values.detach()), k)[1]
    else:
        indices = torch.sort(values.detach(), dim=-1, descending=True, stable=True)[1][..., :k]
    return torch.gather(values, -1, indices), indices.to(torch.int32)


def _make_keys(values: torch.Tensor) -> torch.Tensor:
    """Returns int64 numbers in the order of `values`, and of equal values from the first down."""
    bits = (values + 0.0).view(torch.int32)  # The sum makes a zero of a negative zero.
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    places = torch.arange(values.shape[-1], device=values.device)
    return (ascending << 32) + (values.shape[-1] - places)
