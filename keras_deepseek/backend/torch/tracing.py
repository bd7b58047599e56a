"""Reading numbers off tensors, where PyTorch has them already."""

from typing import Any

import torch


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    if isinstance(value, torch.Tensor) and (value.is_meta or torch.compiler.is_compiling()):
        return None
    return int(value)


def can_read_shapes(value: Any) -> bool:
    """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    # A subclass stands for something else: fake, functional or distributed tensors.
    return type(value) is torch.Tensor and not value.is_meta and not is_traced
