"""Block layouts, the patterns of visible blocks, and tables of the blocks to compute.

Uses NumPy only, once for each layout and length.
"""

import functools
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


NEVER = np.iinfo("int32").max


@dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows of blocks that are computed in one product, each row with the same number of key blocks.

    Shapes: R rows, r blocks of queries in a row, m blocks of keys, T positions in a block.

    Args:
        queries: Integers of shape `(R, r)`. Blocks of queries that see the same blocks of keys.
        keys: Integers of shape `(R, m)`. Those blocks of keys; an unused slot holds any block.
        first_query: Integers of shape `(R, m * T)`. The first position that sees each key; `NEVER`
            for keys of unused slots and beyond the end of the sequence.
        last_query: Integers of shape `(R, m * T)`. The last position that sees each key.
    """

    queries: Array
    keys: Array
    first_query: Array
    last_query: Array


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The row groups to compute for one block layout and one sequence length.

    Args:
        block_size: Positions in a block.
        num_blocks: Blocks in the sequence, the last one padded.
        order: The place of each block in the concatenated outputs of all groups.
    """

    block_size: int
    num_blocks: int
    groups: tuple[RowGroup, ...]
    order: Array


@functools.lru_cache(maxsize=64)
def plan_blocks(layout: BlockLayout, length: int) -> BlockPlan:
    """Returns the block plan of a layout for sequences of a given length.

    Rows that see many blocks, such as global ones, are kept apart from rows that see few. In one
    table all rows would be as wide as the widest, and the cost quadratic.
    """
    num_blocks = max(1, -(-length // layout.block_size))
    whole = layout.whole(num_blocks)
    is_visible = whole | layout.window(num_blocks)
    groups = tuple(
        _make_group(layout, length, rows, is_visible, whole)
        for rows in group_rows(is_visible.sum(1))
    )
    computed = np.concatenate([group.queries.ravel() for group in groups])
    return BlockPlan(layout.block_size, num_blocks, groups, np.argsort(computed))


@functools.lru_cache(maxsize=64)
def plan_rows(layout: BlockLayout, length: int) -> RowGroup:
    """Returns all rows of blocks in one group, in order, so that decoding can index them by row.

    Decoding may not know in advance which row it needs.
    """
    num_blocks = max(1, -(-length // layout.block_size))
    whole = layout.whole(num_blocks)
    rows = np.arange(num_blocks)
    return _tabulate(layout, length, rows[:, None], whole | layout.window(num_blocks), whole)


def group_rows(num_shown: Array) -> list[Array]:
    """Groups rows by similar numbers of visible blocks, so that few slots stay unused.

    A row joins the group of the widest remaining row if it sees more than half as many blocks. Each
    group costs another call of everything, so a new group must save an eighth of the work;
    otherwise its rows join the wider group before it.
    """
    groups: list[Array] = []
    ungrouped = np.arange(len(num_shown))
    while len(ungrouped):
        width = num_shown[ungrouped].max()
        belongs = (2 * num_shown[ungrouped] > width) | (width <= 1)
        rows, ungrouped = ungrouped[belongs], ungrouped[~belongs]
        if groups:
            unused = (num_shown[groups[-1]].max() - num_shown[rows]).sum()
            if 8 * unused <= num_shown.sum():
                groups[-1] = np.sort(np.concatenate([groups[-1], rows]))
                continue
        groups.append(rows)
    return groups


def _make_group(
    layout: BlockLayout, length: int, rows: Array, is_visible: Array, whole: Array
) -> RowGroup:
    queries = rows[:, None]
    if np.all(is_visible[rows] == is_visible[rows[0]]) and np.all(whole[rows] == whole[rows[0]]):
        queries = rows[None]  # All rows see the same blocks, like global ones: no copies needed.
    return _tabulate(layout, length, queries, is_visible, whole)


def _tabulate(
    layout: BlockLayout, length: int, queries: Array, is_visible: Array, whole: Array
) -> RowGroup:
    """Makes the `RowGroup` for given blocks of queries, an array of shape `(R, r)`."""
    rows = queries[:, 0]
    keys, is_used = _pack(is_visible[rows])
    positions = keys[..., None] * layout.block_size + np.arange(layout.block_size)
    first, last = np.zeros_like(positions), np.full_like(positions, NEVER)
    if layout.sliding_window is not None:
        is_whole = np.take_along_axis(whole[rows], keys, 1)[..., None]
        first = np.where(is_whole, first, positions - layout.sliding_window + 1)
        last = np.where(is_whole, last, positions + layout.sliding_window - 1)
    if layout.is_causal:
        first = positions
    first = np.where(is_used[..., None] & (positions < length), first, NEVER)
    flat = (len(keys), -1)
    return RowGroup(
        queries, keys, first.reshape(flat).astype("int32"), last.reshape(flat).astype("int32")
    )


def _pack(is_visible: Array) -> tuple[Array, Array]:
    """Returns a padded table of each row's visible block indices, and a mask of its used slots."""
    width = max(1, is_visible.sum(1).max())
    blocks = np.argsort(~is_visible, axis=1, kind="stable")[:, :width]
    return blocks, np.take_along_axis(is_visible, blocks, 1)
