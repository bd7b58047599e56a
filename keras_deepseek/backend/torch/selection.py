"""The largest numbers of many."""

from typing import Any

import torch

from keras_deepseek.backend.torch.tracing import can_read_shapes


def top_k(values: Any, k: int) -> tuple[Any, Any]:
    """Returns the largest of the last axis and int32 indices; of the least, the first ones."""
    indices = _choose(values.detach(), k)
    return torch.gather(values, -1, indices), indices.to(torch.int32)


def _choose(values: torch.Tensor, k: int) -> torch.Tensor:
    # By `torch.topk` alone, which of equal numbers are taken depends on how many others there are.
    if values.dtype != torch.float32:
        return torch.sort(values, dim=-1, descending=True, stable=True)[1][..., :k]
    if not can_read_shapes(values):
        return torch.topk(_make_keys(values), k)[1]
    largest, indices = torch.topk(values, k)
    least = largest[..., -1:]
    is_tied = (values == least).sum(-1) > (largest == least).sum(-1)
    if is_tied.any():  # It is so in few rows, and the keys take longer than the rest.
        indices[is_tied] = torch.topk(_make_keys(values[is_tied]), k)[1]
    return indices


def _make_keys(values: torch.Tensor) -> torch.Tensor:
    """Returns int64 numbers in the order of `values`, and of equal values from the first down."""
    bits = (values + 0.0).view(torch.int32)  # The sum makes a zero of a negative zero.
    ascending = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    places = torch.arange(values.shape[-1], device=values.device)
    return (ascending << 32) + (values.shape[-1] - places)


def fuses_attention(query: Any) -> bool:
    """Whether `ops.dot_product_attention` is faster than scores, softmax and sums apart."""
    # It takes keys and values of one size alone, and on a CPU the zeros cost more than it gains.
    return bool(query.device.type != "cpu" or query.dtype != torch.float32)


def query_block_size(query: Any) -> int:
    """Returns how many queries of a long causal sequence are computed together."""
    return 128 if query.device.type == "cpu" else 256
