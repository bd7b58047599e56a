"""The two matrices of a `Linear` of `peft`, from those of the kernels in it, and back.

A `Linear` may be several kernels side by side here, each perhaps with an axis of heads. Keras gives
a kernel to heads a matrix A for each head, and one B for all; `peft` has one A for all heads, and a
B for each. Either is one of the other's of as many times the rank, with zeros between its blocks.
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
        down, of_blocks = _join_blocks(*factor)
        up = np.zeros((layout.num_blocks, total, len(down)), of_blocks.dtype)
        up[:, offset : offset + of_blocks.shape[1]] = of_blocks
        downs.append(down)
        ups.append(up.reshape(layout.num_blocks * total, -1))
    if all(np.array_equal(down, downs[0]) for down in downs):
        return downs[0], np.sum(ups, axis=0, dtype=ups[0].dtype)
    return np.concatenate(downs), np.concatenate(ups, axis=1)


def _join_blocks(a: Array, b: Array) -> Factors:
    """Returns one A for all blocks, and a B for each: `(rank, inputs)`, `(blocks, width, rank)`."""
    num_inputs, num_blocks, rank = a.shape
    width = b.shape[1]
    shared = _find_shared(a)
    if shared is not None:
        return shared, b.reshape(num_blocks, -1, width).transpose(0, 2, 1)
    if num_blocks > 1 and rank >= width and num_blocks * rank > num_inputs:
        # The whole change, as `split_shared` may give it: no matrix of more columns is needed.
        change = np.einsum("iby,yw->bwi", a, b)
        return np.eye(num_inputs, dtype=a.dtype), change
    return a.transpose(1, 2, 0).reshape(-1, num_inputs), _repeat_block(b, num_blocks)


def _repeat_block(b: Array, num_blocks: int) -> Array:
    """Returns a B for each block that reads its own A: `(blocks, width, blocks * rank)`."""
    rank, width = b.shape
    up = np.zeros((num_blocks, width, num_blocks, rank), b.dtype)
    for block in range(num_blocks):
        up[block, :, block] = b.T
    return up.reshape(num_blocks, width, -1)


def _find_shared(a: Array) -> Array | None:
    """Returns the one A that `_share` made it of; `None` where there is none such."""
    num_inputs, num_blocks, rank = a.shape
    if rank % num_blocks:
        return None
    parts = a.reshape(num_inputs, num_blocks, num_blocks, -1)
    expected = np.zeros_like(parts)
    for block in range(num_blocks):
        expected[:, block, block] = parts[:, 0, 0]
    return parts[:, 0, 0].T if np.array_equal(parts, expected) else None


def split_blocks(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool]
) -> list[Factors | None] | None:
    """Returns the A's and B's of Keras that `join_factors` was given, as they were.

    Args:
        layout: `LinearLayout`.
        down: Array of shape `(rank, num_inputs)`.
        up: Array of shape `(num_outputs, rank)`.
        has_lora: booleans. Which of the kernels have one.

    Returns:
        For each kernel its factors, or `None` for one without; `None` for all where these were
        joined of no such.
    """
    blocks, start = layout.num_blocks, 0
    rank, uneven = divmod(len(down), blocks * sum(has_lora))
    if not rank or uneven:
        return None
    rest = up.reshape(blocks, -1, len(down)).copy()
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        if not has:
            parts.append(None)
            continue
        end = start + blocks * rank
        a = down[start:end].reshape(blocks, rank, layout.num_inputs).transpose(2, 0, 1)
        b = rest[0, offset : offset + width, start : start + rank].T.copy()
        rest[:, offset : offset + width, start:end] -= _repeat_block(b, blocks)
        parts.append((a, b))
        start = end
    return None if rest.any() else parts


def split_shared(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool]
) -> list[Factors | None] | None:
    """Returns factors of any LoRA of a `Linear`, which has one A for all kernels and their blocks.

    Of kernels to heads their rank is `num_blocks` times that of `peft`, or as much as a head is
    wide, whichever is less.

    Args:
        layout: `LinearLayout`.
        down: Array of shape `(rank, num_inputs)`.
        up: Array of shape `(num_outputs, rank)`.
        has_lora: booleans. Which of the kernels have one.

    Returns:
        For each kernel its factors, or `None` for one without; `None` for all where one without
        would need some.
    """
    rows = up.reshape(layout.num_blocks, -1, len(down))
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        of_kernel = rows[:, offset : offset + width]
        if not has and of_kernel.any():
            return None
        parts.append(_share(down, of_kernel) if has else None)
    return parts


def _share(down: Array, up: Array) -> Factors:
    """Returns the factors of a kernel, of one A for all blocks and a B for each."""
    num_blocks, width, rank = up.shape
    if num_blocks > 1 and num_blocks * rank > width:
        return np.einsum("ri,bwr->ibw", down, up), np.eye(width, dtype=up.dtype)
    a = np.zeros((down.shape[1], num_blocks, num_blocks, rank), down.dtype)
    for block in range(num_blocks):
        a[:, block, block] = down.T
    b = up.transpose(0, 2, 1).reshape(num_blocks * rank, width)
    return a.reshape(down.shape[1], num_blocks, -1), b
