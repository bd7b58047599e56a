"""The three branches of `NativeSparseAttention`, from queries, keys and values to heads.

Queries are the tokens of a call, keys what stands in the sequence or in the cache so far, by the
numbers of the tokens without padding. Scores and softmax are in float32.

Legend: B batch, L queries, H heads, G heads of keys and values, R heads of queries to each, D size
of a head, P places for keys, N compressed blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.compressed.token_places import take_places
from keras_deepseek.layers.attention.sparse.block_choice import (
    attend_to_chosen,
    choose_blocks,
    share_blocks,
)
from keras_deepseek.layers.attention.sparse.block_layout import BlockLayout
from keras_deepseek.layers.attention.sparse.block_plan import plan_blocks
from keras_deepseek.layers.attention.sparse.block_sparse_attention import (
    attend_rows,
    block_sparse_attention,
    join_rows,
    split_rows,
    weigh_keys,
)
from keras_deepseek.layers.double_precision import multiply_matrices

BRANCHES = ("compression", "selection", "window")
KINDS = ("key", "value")

_WINDOW_BLOCK_SIZE = 64


@dataclass(frozen=True, eq=False)
class NativeSparseBranches:
    """The sizes of the branches, and what they compute.

    Args:
        compression_block_size: integer. Tokens in a compressed block.
        compression_stride: integer. Tokens from the first of one to that of the next.
        selection_block_size: integer. Tokens in a block to choose.
        num_selected_blocks: integer. Number of blocks that are chosen for each token.
        num_initial_blocks: integer. Number of blocks at the beginning that are always chosen.
        num_local_blocks: integer. Number of blocks up to that of the token that always are.
        sliding_window: integer. Number of tokens in the window.

    Raises:
        InvalidInputError: The sizes do not fit one another.
    """

    compression_block_size: int
    compression_stride: int
    selection_block_size: int
    num_selected_blocks: int
    num_initial_blocks: int
    num_local_blocks: int
    sliding_window: int

    def __post_init__(self) -> None:
        for name in ("compression_block_size", "selection_block_size"):
            if getattr(self, name) % self.compression_stride:
                raise InvalidInputError(
                    f"`{name}` must be a multiple of `compression_stride`, received "
                    f"{getattr(self, name)} and {self.compression_stride}."
                )
        if self.num_selected_blocks < self.num_initial_blocks + self.num_local_blocks:
            raise InvalidInputError(
                f"`num_selected_blocks` must have room for `num_initial_blocks` and "
                f"`num_local_blocks`, which are always chosen, received "
                f"{self.num_selected_blocks} for {self.num_initial_blocks} and "
                f"{self.num_local_blocks}."
            )

    @cached_property
    def window_layout(self) -> BlockLayout:
        """What a token sees in the window."""
        size = min(_WINDOW_BLOCK_SIZE, self.sliding_window)
        return BlockLayout(size, is_causal=True, sliding_window=self.sliding_window)

    @cached_property
    def full_layout(self) -> BlockLayout:
        """What a token sees where all blocks are chosen."""
        return BlockLayout(self.selection_block_size, is_causal=True, block_stride=1)

    def count_compressed(self, length: int) -> int:
        """Returns how many compressed blocks have ended after so many tokens."""
        return max(0, (length - self.compression_block_size) // self.compression_stride + 1)

    def attend_to_tokens(self, query: Any, keys: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs of the branches where the tokens are all that there is.

        Args:
            query: Tensor of shape `(B, L, H, D)`.
            keys: dict. `"compressed_KIND"`, of shape `(B, G, N, D)`, `"selection_KIND"` and
                `"window_KIND"`, of shape `(B, G, L, D)`, of the kinds `"key"` and `"value"`.

        Returns:
            Three tensors of shape `(B, L, H, D)`, with the D of values.
        """
        length = query.shape[1]
        numbers = ops.expand_dims(ops.arange(length, dtype="int32"), 0)
        num_blocks = -(-length // self.selection_block_size)
        far, blocks = self._compare(query, keys, numbers, num_blocks)
        key, value = keys["selection_key"], keys["selection_value"]
        if num_blocks <= self.num_selected_blocks:  # All are chosen: there is nothing to gather.
            plan = plan_blocks(self.full_layout, length)
            chosen = block_sparse_attention(query, swap_heads(key), swap_heads(value), plan)
        else:
            fill = ((0, 0), (0, 0), (0, -length % self.selection_block_size), (0, 0))
            key, value = ops.pad(key, fill), ops.pad(value, fill)
            chosen = self._gather(query, key, value, blocks, numbers)
        key, value = swap_heads(keys["window_key"]), swap_heads(keys["window_value"])
        plan = plan_blocks(self.window_layout, length)
        return [far, chosen, block_sparse_attention(query, key, value, plan)]

    def attend_to_cache(self, query: Any, cache: Mapping[str, Any], numbers: Any) -> list[Any]:
        """Returns the outputs of the branches where the tokens follow those of a cache.

        Args:
            query: Tensor of shape `(B, L, H, D)`.
            cache: dict. As `keys` above, with room for more tokens; those of the queries are in it.
            numbers: Integer tensor of shape `(B, L)`. Those of the queries, one after the other.

        Returns:
            Three tensors of shape `(B, L, H, D)`, with the D of values.
        """
        num_blocks = cache["selection_key"].shape[2] // self.selection_block_size
        far, blocks = self._compare(query, cache, numbers, num_blocks)
        key, value = cache["selection_key"], cache["selection_value"]
        chosen = self._gather(query, key, value, blocks, numbers)
        key, value = cache["window_key"], cache["window_value"]
        near = attend_to_window(query, key, value, numbers, self.window_layout)
        return [far, chosen, near]

    def _compare(
        self, query: Any, keys: Mapping[str, Any], numbers: Any, num_blocks: int
    ) -> tuple[Any, Any]:
        """Returns the outputs of the branch of compressed blocks, and which blocks that chooses."""
        sizes = (self.compression_block_size, self.compression_stride)
        heads, weights = attend_to_compressed(
            query, keys["compressed_key"], keys["compressed_value"], numbers, *sizes
        )
        shares = share_blocks(weights.shape[-1], *sizes, num_blocks, self.selection_block_size)
        blocks = choose_blocks(
            multiply_matrices(ops.stop_gradient(weights), ops.cast(shares, weights.dtype)),
            numbers,
            self.selection_block_size,
            self.num_selected_blocks,
            self.num_initial_blocks,
            self.num_local_blocks,
        )
        return heads, blocks

    def _gather(self, query: Any, key: Any, value: Any, blocks: Any, numbers: Any) -> Any:
        size = self.selection_block_size
        rows = group_heads(query, key.shape[1])
        key, value = (
            ops.reshape(x, (-1, x.shape[1], x.shape[2] // size, size, x.shape[3]))
            for x in (key, value)
        )
        heads = attend_to_chosen(rows, key, value, blocks, numbers)
        heads = ops.transpose(heads, (0, 2, 1, 3, 4))
        return ops.reshape(heads, (-1, *query.shape[1:3], heads.shape[-1]))


def attend_to_compressed(
    query: Any, key: Any, value: Any, numbers: Any, block_size: int, stride: int
) -> tuple[Any, Any]:
    """Returns the attention to blocks that have ended, and how much went to each.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        key: Tensor of shape `(B, G, N, D)`.
        value: Tensor of shape `(B, G, N, D)`, with a D of its own.
        numbers: Integer tensor of shape `(B, L)` or `(1, L)`. Those of the queries.
        block_size: integer. Tokens in a block.
        stride: integer. Tokens from the first of a block to that of the next.

    Returns:
        The outputs, of shape `(B, L, H, D)`, zeros where no block has ended, and the weights summed
        over the queries' heads that share a head of keys, of shape `(B, G, L, N)`.
    """
    rows = group_heads(query, key.shape[1])
    scores = ops.einsum("bglrd,bgnd->bglrn", rows, key)
    ends = np.arange(key.shape[2], dtype="int32") * stride + np.int32(block_size - 1)
    is_shown = ops.less_equal(ends, numbers[:, None, :, None, None])
    weights = weigh_keys(scores, is_shown)
    weights = weights * ops.cast(is_shown, weights.dtype)
    heads = ops.einsum("bglrn,bgnd->blgrd", ops.cast(weights, value.dtype), value)
    heads = ops.reshape(heads, (-1, query.shape[1], query.shape[2], value.shape[-1]))
    return heads, ops.sum(weights, axis=3)


def attend_to_window(query: Any, key: Any, value: Any, numbers: Any, layout: BlockLayout) -> Any:
    """Returns the attention to the last tokens that a cache holds.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        key: Tensor of shape `(B, G, P, D)`, with the keys of the queries in it.
        value: Tensor of shape `(B, G, P, D)`, with a D of its own.
        numbers: Integer tensor of shape `(B, L)`. Those of the queries, in a row.
        layout: `BlockLayout` with a causal `sliding_window`, and nothing else.

    Returns:
        A tensor of shape `(B, L, H, D)`, with the D of `value`.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups, window = key.shape[1], layout.sliding_window or 1
    places = numbers[:, :1] + ops.arange(1 - window, length, dtype="int32")
    key, value = (take_places(x, ops.maximum(places, 0)) for x in (key, value))
    is_real = ops.greater_equal(places, 0)
    if length > window:  # Not each with all: the tokens before stand there as queries too.
        query = ops.pad(query, ((0, 0), (window - 1, 0), (0, 0), (0, 0)))
        key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (key, value))
        plan = plan_blocks(layout, length + window - 1)
        return block_sparse_attention(query, key, value, plan, is_real)[:, window - 1 :]
    distance = np.arange(length)[:, None] - np.arange(1 - window, length)
    is_seen = np.tile((distance >= 0) & (distance < window), (num_heads // num_groups, 1))
    is_shown = ops.logical_and(is_real[:, None, None, None], is_seen)
    rows = split_rows(query * dim**-0.5, 1, num_groups)
    heads = attend_rows(rows, key[:, :, None], value[:, :, None], is_shown, None)
    return join_rows(heads, num_heads)


def group_heads(query: Any, num_groups: int) -> Any:
    """Returns queries by the heads of keys that they share, scaled.

    Args:
        query: Tensor of shape `(B, L, H, D)`.
        num_groups: integer. G.

    Returns:
        A tensor of shape `(B, G, L, R, D)`.
    """
    length, num_heads, dim = query.shape[1:]
    rows = ops.reshape(query * dim**-0.5, (-1, length, num_groups, num_heads // num_groups, dim))
    return ops.transpose(rows, (0, 2, 1, 3, 4))


def swap_heads(x: Any) -> Any:
    """Returns tensors of shape (B, L, G, D) as (B, G, L, D), and the other way round."""
    return ops.transpose(x, (0, 2, 1, 3))
