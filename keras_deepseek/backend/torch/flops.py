"""What a computation costs, counted on PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Returns the floating-point operations of `function(*args)`, a multiply-add as two."""
    # The CPU's kernel is the one form of attention that PyTorch's counter does not know.
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention}
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.no_grad():
        function(*args)
    return int(counter.get_total_flops())


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Returns the operations of attention by the shapes of its heads."""
    batch_size, heads, length, dim = query
    return 2 * int(batch_size * heads * length * key[2] * (dim + value[3]))
