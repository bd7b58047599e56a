"""The two matrices of a `Linear` of `peft`, from those of the kernels in it, and back.

A `Linear` may be several kernels side by side here, each perhaps with an axis of heads. Keras gives
a kernel to heads a matrix A for each head, and one B for all: for `peft` that is a LoRA of as many
times the rank, whose B is zero but for its blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array

Factors = tuple[Array, Array]


@dataclass(frozen=True)
class LinearLayout:
    """How a `Linear` consists of kernels.

    Args:
        num_inputs: integer. Its inputs.
        num_blocks: integer. The outputs stand in so many blocks, such as heads; 1 for none.
        widths: tuple of integers. How many outputs of a block are those of each kernel.
    """

    num_inputs: int
    num_blocks: int
    widths: tuple[int, ...]

    @property
    def offsets(self) -> list[int]:
        """Where the outputs of each kernel begin in a block."""
        return [sum(self.widths[:index]) for index in range(len(self.widths))]


def join_factors(layout: LinearLayout, factors: Sequence[Factors | None]) -> Factors:
    """Returns `lora_A.weight` and `lora_B.weight` of the `Linear`.

    Args:
        layout: `LinearLayout`.
        factors: For each kernel its A, of shape `(num_inputs, num_blocks, rank)`, and B, of shape
            `(rank, width)`, or `None` where it has no LoRA.
    """
    downs, ups = [], []
    total = sum(layout.widths)
    for offset, factor in zip(layout.offsets, factors, strict=True):
        if factor is None:
            continue
        a, b = factor
        rank, width = b.shape
        downs.append(a.transpose(1, 2, 0).reshape(-1, layout.num_inputs))
        up = np.zeros((layout.num_blocks, total, layout.num_blocks, rank), b.dtype)
        for block in range(layout.num_blocks):
            up[block, offset : offset + width, block] = b.T
        ups.append(up.reshape(layout.num_blocks * total, -1))
    return np.concatenate(downs), np.concatenate(ups, axis=1)


def split_factors(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool]
) -> list[Factors | None] | None:
    """Returns what `join_factors` was given; `None` where kernels here can't have that LoRA.

    Args:
        layout: `LinearLayout`.
        down: Array of shape `(rank, num_inputs)`.
        up: Array of shape `(num_outputs, rank)`.
        has_lora: booleans. Which of the kernels have one.
    """
    rank, rest = divmod(len(down), layout.num_blocks * sum(has_lora))
    if rank and not rest:
        found = _split_blocks(layout, down, up, has_lora, rank)
        if np.array_equal(join_factors(layout, found)[1], up):
            return found
    if layout.num_blocks > 1:
        return None
    # One A for all kernels is one for each.
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        rows = up[offset : offset + width]
        if not has and rows.any():
            return None
        parts.append((down.T[:, None], rows.T) if has else None)
    return parts


def _split_blocks(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool], rank: int
) -> list[Factors | None]:
    blocks, start = layout.num_blocks, 0
    of_first = up.reshape(blocks, -1, len(down))[0]
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        if not has:
            parts.append(None)
            continue
        end = start + blocks * rank
        a = down[start:end].reshape(blocks, rank, layout.num_inputs).transpose(2, 0, 1)
        parts.append((a, of_first[offset : offset + width, start : start + rank].T))
        start = end
    return parts
