"""Tables of blocks to compute, made from a block layout for `block_sparse_attention`.

Uses NumPy only, once for each layout and length.
"""

import functools
from dataclasses import dataclass

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.layers.attention.sparse.block_layout import BlockLayout

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
