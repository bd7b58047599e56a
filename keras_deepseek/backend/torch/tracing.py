"""Reading numbers off tensors, where PyTorch has them already."""

from contextvars import ContextVar
from typing import Any

import torch

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.keras_internals import infers_shapes

IS_RECORDED: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""Whether operations are recorded, to be run again with other numbers: so none can be read."""


def read_integer(value: Any) -> int | None:
    """Returns an integer or integer scalar tensor as a number; `None` while it is traced."""
    if not isinstance(value, torch.Tensor):
        return int(value)
    is_traced = value.is_meta or torch.compiler.is_compiling() or infers_shapes()
    is_traced = is_traced or IS_RECORDED.get()
    return None if is_traced else int(value)


def read_array(value: Any) -> Array | None:
    """Returns a tensor's numbers where the host holds them; `None` where it must wait.

    A number that is only traced, or that an accelerator has yet to compute, is waited for.
    """
    is_here = can_read_shapes(value) and value.device.type == "cpu" and not infers_shapes()
    return value.detach().numpy() if is_here else None


def can_read_shapes(value: Any) -> bool:
    """Whether a tensor's numbers can be read, and shapes may follow from them at no cost."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or IS_RECORDED.get()
    # A subclass stands for something else: fake, functional or distributed tensors.
    return type(value) is torch.Tensor and not value.is_meta and not is_traced
