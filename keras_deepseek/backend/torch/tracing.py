"""Reading numbers off tensors, where PyTorch has them already."""

from typing import Any

import torch


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    if isinstance(value, torch.Tensor) and (value.is_meta or torch.compiler.is_compiling()):
        return None
    return int(value)
