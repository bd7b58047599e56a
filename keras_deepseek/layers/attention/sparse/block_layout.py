"""Block layouts: the patterns of visible blocks that `BlockSparseAttention` combines.

Uses NumPy only. `block_plan` turns a layout into tables for the computation.
"""

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError

_LEAST = {
    "block_size": 1,
    "sliding_window": 1,
    "block_stride": 1,
    "num_random_blocks": 0,
    "layout_seed": 0,
}
_OPTIONAL = ("sliding_window", "block_stride")


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """The union of several patterns of visible blocks. Each default turns its pattern off.

    Args:
        block_size: Positions in a block.
        is_causal: If true, no position sees a later one.
        sliding_window: A position sees positions less than this many away.
        global_blocks: Blocks that see all blocks and are seen by all; negative numbers count from
            the end. A number beyond a sequence is ignored.
        block_stride: A block sees blocks at multiples of this many blocks.
        num_random_blocks: The number of additional random blocks that each block sees.
        layout_seed: The random seed of these.
        visible_blocks: Boolean array of shape `(num_blocks, num_blocks)`. Entry `[i, j]` shows
            block j to block i.
    """

    block_size: int
    is_causal: bool = False
    sliding_window: int | None = None
    global_blocks: Iterable[int] = ()
    block_stride: int | None = None
    num_random_blocks: int = 0
    layout_seed: int = 0
    visible_blocks: Array | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check_integer(name, value, minimum=least))
        object.__setattr__(self, "global_blocks", _read_blocks(self.global_blocks))
        if self.visible_blocks is not None:
            _check_visible_blocks(self.visible_blocks)
        patterns = (self.sliding_window, self.global_blocks, self.block_stride)
        if not any(patterns) and not self.num_random_blocks and self.visible_blocks is None:
            raise InvalidInputError(
                "The layout shows no block to any position. Give at least one of `sliding_window`, "
                "`global_blocks`, `block_stride`, `num_random_blocks` and `block_layout`."
            )

    def window(self, num_blocks: int) -> Array:
        """Returns the pairs of query and key blocks that the sliding window covers, even in part.

        The plan decides which positions of such a pair see each other, because a window is exact.
        """
        if self.sliding_window is None:
            return np.zeros((num_blocks, num_blocks), bool)
        reach = (self.sliding_window - 2) // self.block_size + 1
        return self._if_causal(np.abs(_offsets(num_blocks)) <= reach)

    def whole(self, num_blocks: int) -> Array:
        """Returns the pairs of query and key blocks in which only causality hides positions."""
        whole = np.zeros((num_blocks, num_blocks), bool)
        if self.visible_blocks is not None:
            if num_blocks > len(self.visible_blocks):
                raise InvalidInputError(
                    f"`block_layout` covers {len(self.visible_blocks)} blocks of {self.block_size} "
                    f"positions, received a sequence of {num_blocks} blocks. Give a larger layout."
                )
            whole |= self.visible_blocks[:num_blocks, :num_blocks]
        if self.block_stride is not None:
            whole |= _offsets(num_blocks) % self.block_stride == 0
        for block in self.global_blocks:
            if -num_blocks <= block < num_blocks:
                whole[block, :] = whole[:, block] = True
        if self.num_random_blocks:
            whole |= self._draw(~(whole | self.window(num_blocks)))
        return self._if_causal(whole)

    def _draw(self, free: Array) -> Array:
        """Draws random key blocks for each query block, among those no other pattern shows."""
        rng = np.random.default_rng(self.layout_seed)
        drawn = np.zeros_like(free)
        for row, candidates in enumerate(self._if_causal(free)):
            blocks = np.flatnonzero(candidates)
            size = min(self.num_random_blocks, len(blocks))
            drawn[row, rng.choice(blocks, size, replace=False) if size else []] = True
        return drawn

    def _if_causal(self, pairs: Array) -> Array:
        return np.tril(pairs) if self.is_causal else pairs


def _read_blocks(blocks: Any) -> tuple[int, ...]:
    """Checks a user's block indices, and returns them as a tuple of Python integers."""
    try:
        indices = tuple(blocks)
    except TypeError:
        indices = (None,)
    if not all(isinstance(x, numbers.Integral) and not isinstance(x, bool) for x in indices):
        raise InvalidInputError(
            f"`global_blocks` must be a list of integers, or an array or range of them, received "
            f"{blocks!r}."
        )
    return tuple(int(x) for x in indices)


def _check_visible_blocks(blocks: Array) -> None:
    if blocks.dtype != bool:
        raise InvalidInputError(
            f"`block_layout` must hold booleans, received {blocks.dtype}: write `layout != 0`."
        )
    if blocks.ndim != 2 or blocks.shape[0] != blocks.shape[1] or not blocks.size:  # noqa: PLR2004
        raise InvalidInputError(
            f"`block_layout` must be of shape (num_blocks, num_blocks), received {blocks.shape}."
        )


def _offsets(num_blocks: int) -> Array:
    blocks = np.arange(num_blocks)
    return blocks[:, None] - blocks
