"""Conversion of LoRA matrices between a `peft` `Linear` and the Keras kernels in it.

A `Linear` may consist of several kernels here, each with an optional axis of heads. For a kernel to
heads, Keras has a matrix A for each head and one B for all; `peft` has one A for all heads and a B
for each. Either form can represent the other with a rank that is `num_heads` times as large, and
zeros between the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array

Factors = tuple[Array, Array]


@dataclass(frozen=True)
class LinearLayout:
    """The layout of Keras kernels within one PyTorch `Linear`.

    Args:
        num_inputs: The number of inputs.
        num_blocks: The number of blocks of outputs, such as heads; 1 for none.
        widths: The number of outputs in a block for each kernel.
    """

    num_inputs: int
    num_blocks: int
    widths: tuple[int, ...]

    @property
    def offsets(self) -> list[int]:
        """The index of each kernel's first output within a block of outputs."""
        return [sum(self.widths[:index]) for index in range(len(self.widths))]


def join_factors(layout: LinearLayout, factors: Sequence[Factors | None]) -> Factors:
    """Merges the LoRA of several kernels into one `lora_A.weight` and `lora_B.weight`.

    `factors` has for each kernel its A, `(num_inputs, num_blocks, rank)`, and B, `(rank, width)`,
    or `None` for a kernel without a LoRA.
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
    """Returns an A shared by all blocks, one B each: `(rank, inputs)`, `(blocks, width, rank)`."""
    num_inputs, num_blocks, rank = a.shape
    width = b.shape[1]
    shared = _find_shared(a)
    if shared is not None:
        return shared, b.reshape(num_blocks, -1, width).transpose(0, 2, 1)
    if num_blocks > 1 and rank >= width and num_blocks * rank > num_inputs:
        # The whole product, as `split_shared` may make it, has a smaller rank.
        change = np.einsum("iby,yw->bwi", a, b)
        return np.eye(num_inputs, dtype=a.dtype), change
    return a.transpose(1, 2, 0).reshape(-1, num_inputs), _repeat_block(b, num_blocks)


def _repeat_block(b: Array, num_blocks: int) -> Array:
    """Returns one B per block, nonzero only for its own A: `(blocks, width, blocks * rank)`."""
    rank, width = b.shape
    up = np.zeros((num_blocks, width, num_blocks, rank), b.dtype)
    for block in range(num_blocks):
        up[block, :, block] = b.T
    return up.reshape(num_blocks, width, -1)


def _find_shared(a: Array) -> Array | None:
    """Returns the A that `_share` repeated for each block; `None` for any other `a`."""
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
    """Splits `lora_A` and `lora_B` of a `Linear` into one A and B for each Keras kernel.

    It is the inverse of `join_factors`. `down` is `(rank, num_inputs)`, `up` `(num_outputs, rank)`.
    `has_lora` says for each kernel if it has a LoRA; without one its factors are `None`. Returns
    `None` for all if `join_factors` did not make these matrices.
    """
    blocks, start = layout.num_blocks, 0
    rank, uneven = divmod(len(down), blocks * sum(has_lora))
    if not rank or uneven:
        return None
    residual = up.reshape(blocks, -1, len(down)).copy()
    parts: list[Factors | None] = []
    for offset, width, has in zip(layout.offsets, layout.widths, has_lora, strict=True):
        if not has:
            parts.append(None)
            continue
        end = start + blocks * rank
        a = down[start:end].reshape(blocks, rank, layout.num_inputs).transpose(2, 0, 1)
        b = residual[0, offset : offset + width, start : start + rank].T.copy()
        residual[:, offset : offset + width, start:end] -= _repeat_block(b, blocks)
        parts.append((a, b))
        start = end
    return None if residual.any() else parts


def split_shared(
    layout: LinearLayout, down: Array, up: Array, has_lora: Sequence[bool]
) -> list[Factors | None] | None:
    """Splits any LoRA of a `peft` `Linear` into LoRA matrices A and B for each Keras kernel.

    The rank for kernels to heads is `num_blocks` times that of `peft`, or the width of a head if
    that is less. The arguments are those of `split_blocks`. Returns `None` for all if a kernel
    without a LoRA would need one.
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
    """Returns LoRA's A and B of a fused kernel, from a shared A and one B for each part."""
    num_blocks, width, rank = up.shape
    if num_blocks > 1 and num_blocks * rank > width:
        return np.einsum("ri,bwr->ibw", down, up), np.eye(width, dtype=up.dtype)
    a = np.zeros((down.shape[1], num_blocks, num_blocks, rank), down.dtype)
    for block in range(num_blocks):
        a[:, block, block] = down.T
    b = up.transpose(0, 2, 1).reshape(num_blocks * rank, width)
    return a.reshape(down.shape[1], num_blocks, -1), b
