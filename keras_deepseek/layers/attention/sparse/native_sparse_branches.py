"""The three branches of `NativeSparseAttention`: compression, selection and sliding window.

`BlockCompression` makes the keys and values of compressed blocks, and `take_places` and
`put_places` read and write tokens by their numbers.

Queries are the tokens of a call. Keys are all tokens of the sequence or of the cache so far,
numbered without padding. Scores and softmax are in float32.

Shape suffixes: B batch, L queries, N heads, G heads of keys and values, R heads of queries to each
of these, H size of a head, P places for keys, M compressed blocks, K chosen blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.head_projection import make_projection
from keras_deepseek.layers.attention.sparse.block_attention import (
    attend_rows,
    attend_to_blocks,
    join_rows,
    split_rows,
    weigh_keys,
)
from keras_deepseek.layers.attention.sparse.block_choice import (
    attend_to_chosen,
    choose_blocks,
    share_blocks,
)
from keras_deepseek.layers.attention.sparse.block_plan import BlockLayout, plan_blocks
from keras_deepseek.layers.double_precision import multiply_matrices
from keras_deepseek.layers.input_check import Shape

BRANCHES = ("compression", "selection", "window")
KINDS = ("key", "value")

_WINDOW_BLOCK_SIZE = 64


@dataclass(frozen=True, eq=False)
class NativeSparseBranches:
    """The sizes and the attention of the three branches of `NativeSparseAttention`.

    Args:
        compression_block_size: Tokens in a compressed block.
        compression_stride: Tokens from the start of a compressed block to the start of the next.
        selection_block_size: Tokens in a block to choose.
        num_selected_blocks: The number of blocks that are chosen for each token.
        num_initial_blocks: The number of first blocks that are always chosen.
        num_local_blocks: The number of last blocks that are always chosen, the token's own
            included.
        sliding_window: The number of tokens in the window.
    """

    compression_block_size: int
    compression_stride: int
    selection_block_size: int
    num_selected_blocks: int
    num_initial_blocks: int
    num_local_blocks: int
    sliding_window: int

    def __post_init__(self) -> None:
        for field in fields(self):
            size = check_integer(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, size)
        for name in ("compression_block_size", "selection_block_size"):
            if getattr(self, name) % self.compression_stride:
                raise InvalidInputError(
                    f"`{name}` must be a multiple of `compression_stride`, received "
                    f"{getattr(self, name)} and {self.compression_stride}."
                )
        if self.num_selected_blocks < self.num_initial_blocks + self.num_local_blocks:
            raise InvalidInputError(
                f"`num_selected_blocks` must be at least `num_initial_blocks` + "
                f"`num_local_blocks`, because these are always chosen; received "
                f"{self.num_selected_blocks}, {self.num_initial_blocks} and "
                f"{self.num_local_blocks}."
            )

    @cached_property
    def window_layout(self) -> BlockLayout:
        """The block layout of the sliding window branch."""
        size = min(_WINDOW_BLOCK_SIZE, self.sliding_window)
        return BlockLayout(size, is_causal=True, sliding_window=self.sliding_window)

    @cached_property
    def full_layout(self) -> BlockLayout:
        """The block layout of the selection branch if all blocks are chosen: fully causal."""
        return BlockLayout(self.selection_block_size, is_causal=True, block_stride=1)

    def count_compressed(self, length: int) -> int:
        """Returns the number of compressed blocks that are complete after `length` tokens."""
        return max(0, (length - self.compression_block_size) // self.compression_stride + 1)

    def attend_to_tokens(self, query: Any, keys: Mapping[str, Any]) -> list[Any]:
        """Computes the attention of the three branches (BLNH) without a cache.

        The query is (BLNH). `keys` has `"compressed_KIND"` (BGMH), `"selection_KIND"` and
        `"window_KIND"` (BGLH), of the kinds `"key"` and `"value"`. The H of values may differ; the
        result has this H.
        """
        length = query.shape[1]
        numbers = ops.expand_dims(ops.arange(length, dtype="int32"), 0)
        num_blocks = -(-length // self.selection_block_size)
        far, blocks = self._compare(query, keys, numbers, num_blocks)
        key, value = keys["selection_key"], keys["selection_value"]
        if num_blocks <= self.num_selected_blocks:  # All are chosen, so nothing is gathered.
            plan = plan_blocks(self.full_layout, length)
            chosen = attend_to_blocks(query, swap_heads(key), swap_heads(value), plan)
        else:
            fill = ((0, 0), (0, 0), (0, -length % self.selection_block_size), (0, 0))
            key, value = ops.pad(key, fill), ops.pad(value, fill)
            chosen = self._gather(query, key, value, blocks, numbers)
        key, value = swap_heads(keys["window_key"]), swap_heads(keys["window_value"])
        plan = plan_blocks(self.window_layout, length)
        return [far, chosen, attend_to_blocks(query, key, value, plan)]

    def attend_to_cache(self, query: Any, cache: Mapping[str, Any], numbers: Any) -> list[Any]:
        """Computes the attention of the three branches (BLNH) for new tokens, with a cache.

        The cache is like `keys` of `attend_to_tokens`, with P places for tokens. The keys of the
        queries are in it. `numbers` (BL) are the consecutive token numbers of the queries.
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
        """Computes the compression branch (BLNH), and chooses the selection's blocks (BGLK)."""
        sizes = (self.compression_block_size, self.compression_stride)
        heads_BLNH, weights_BGLM = attend_to_compressed(
            query, keys["compressed_key"], keys["compressed_value"], numbers, *sizes
        )
        shares = share_blocks(weights_BGLM.shape[-1], *sizes, num_blocks, self.selection_block_size)
        chosen_BGLK = choose_blocks(
            multiply_matrices(
                ops.stop_gradient(weights_BGLM), ops.cast(shares, weights_BGLM.dtype)
            ),
            numbers,
            self.selection_block_size,
            self.num_selected_blocks,
            self.num_initial_blocks,
            self.num_local_blocks,
        )
        return heads_BLNH, chosen_BGLK

    def _gather(
        self, query: Any, key_BGPH: Any, value_BGPH: Any, chosen_BGLK: Any, numbers: Any
    ) -> Any:
        """Computes the selection branch (BLNH) by gathering the chosen blocks of each query."""
        size = self.selection_block_size
        key_blocks, value_blocks = (
            ops.reshape(x, (-1, x.shape[1], x.shape[2] // size, size, x.shape[3]))
            for x in (key_BGPH, value_BGPH)
        )
        heads_BGLRH = attend_to_chosen(
            group_heads(query, key_BGPH.shape[1]), key_blocks, value_blocks, chosen_BGLK, numbers
        )
        heads_BLGRH = ops.transpose(heads_BGLRH, (0, 2, 1, 3, 4))
        return ops.reshape(heads_BLGRH, (-1, *query.shape[1:3], heads_BLGRH.shape[-1]))


def attend_to_compressed(
    query: Any, key_BGMH: Any, value_BGMH: Any, numbers: Any, block_size: int, stride: int
) -> tuple[Any, Any]:
    """Computes attention to the completed compressed blocks, and its weights.

    The query is (BLNH); the H of values may differ. `numbers` (BL) are the token numbers of the
    queries; its batch may be 1. Sizes are in tokens. The outputs (BLNH) are zeros where no block
    has ended. The weights are summed over the heads of queries that share a head of keys (BGLM).
    """
    query_BGLRH = group_heads(query, key_BGMH.shape[1])
    scores_BGLRM = ops.einsum("bglrh,bgmh->bglrm", query_BGLRH, key_BGMH)
    ends_M = np.arange(key_BGMH.shape[2], dtype="int32") * stride + np.int32(block_size - 1)
    has_ended = ops.less_equal(ends_M, numbers[:, None, :, None, None])
    weights_BGLRM = weigh_keys(scores_BGLRM, has_ended)
    weights_BGLRM = weights_BGLRM * ops.cast(has_ended, weights_BGLRM.dtype)
    heads_BLGRH = ops.einsum(
        "bglrm,bgmh->blgrh", ops.cast(weights_BGLRM, value_BGMH.dtype), value_BGMH
    )
    heads_BLNH = ops.reshape(heads_BLGRH, (-1, *query.shape[1:3], value_BGMH.shape[-1]))
    return heads_BLNH, ops.sum(weights_BGLRM, axis=3)


def attend_to_window(query: Any, key: Any, value: Any, numbers: Any, layout: BlockLayout) -> Any:
    """Computes sliding window attention of new tokens over a cache (BLNH).

    The query is (BLNH); keys and values are (BGPH), with those of the queries in them, and the H of
    values may differ. `numbers` (BL) are the consecutive token numbers of the queries. The layout
    has a causal `sliding_window` and no other pattern.
    """
    length, num_heads, dim = query.shape[1:]
    num_groups, window = key.shape[1], layout.sliding_window or 1
    indices = numbers[:, :1] + ops.arange(1 - window, length, dtype="int32")
    key, value = (take_places(x, ops.maximum(indices, 0)) for x in (key, value))
    is_real = ops.greater_equal(indices, 0)
    if length > window:  # Computed in blocks; earlier tokens are added as queries, then dropped.
        query = ops.pad(query, ((0, 0), (window - 1, 0), (0, 0), (0, 0)))
        key, value = (ops.transpose(x, (0, 2, 1, 3)) for x in (key, value))
        plan = plan_blocks(layout, length + window - 1)
        return attend_to_blocks(query, key, value, plan, is_real)[:, window - 1 :]
    distance = np.arange(length)[:, None] - np.arange(1 - window, length)
    is_seen = np.tile((distance >= 0) & (distance < window), (num_heads // num_groups, 1))
    is_shown = ops.logical_and(is_real[:, None, None, None], is_seen)
    rows = split_rows(query * dim**-0.5, 1, num_groups)
    heads = attend_rows(rows, key[:, :, None], value[:, :, None], is_shown, None)
    return join_rows(heads, num_heads)


def group_heads(query: Any, num_groups: int) -> Any:
    """Scales queries, and groups them by the key head that they share: BLNH to BGLRH."""
    length, num_heads, dim = query.shape[1:]
    rows = ops.reshape(query * dim**-0.5, (-1, length, num_groups, num_heads // num_groups, dim))
    return ops.transpose(rows, (0, 2, 1, 3, 4))


def swap_heads(x: Any) -> Any:
    """Swaps the axes of tokens and heads: BLGH to BGLH, or back."""
    return ops.transpose(x, (0, 2, 1, 3))


def take_places(x: Any, indices: Any) -> Any:
    """Gathers entries (BGKD) from `x` (BGPD) by their `indices` (BK)."""
    rows = _number_rows(x, indices)
    entries = ops.take(ops.reshape(x, (-1, x.shape[-1])), ops.reshape(rows, (-1,)), axis=0)
    return ops.reshape(entries, (-1, x.shape[1], indices.shape[1], x.shape[-1]))


def put_places(x: Any, indices: Any, updates: Any) -> Any:
    """Returns a copy of `x` (BGPD) with `updates` (BGKD) written at `indices` (BK)."""
    dim = x.shape[-1]
    rows = ops.reshape(_number_rows(x, indices), (-1, 1))
    updates = ops.reshape(ops.cast(updates, x.dtype), (-1, dim))
    return ops.reshape(
        ops.scatter_update(ops.reshape(x, (-1, dim)), rows, updates), (-1, *x.shape[1:])
    )


def _number_rows(x: Any, indices: Any) -> Any:
    """Converts `indices` (BK) to indices (BGK) into `x` (BGPD), its first three axes flattened."""
    num_heads, num_places = x.shape[1:3]
    rows = ops.arange(ops.shape(x)[0] * num_heads, dtype="int32") * num_places
    return ops.reshape(rows, (-1, num_heads, 1)) + ops.expand_dims(indices, 1)


class BlockCompression(keras.Layer):
    """A perceptron that compresses a block of tokens, with a learned vector for each position.

    ```
    output = down(silu(up(flatten(block + positions))))
    ```

    Heads share the kernels and have separate positions. `hidden_dim` is the size between the two
    kernels. Inputs are `(batch_size, num_heads, num_blocks, block_size, dim)`, outputs
    `(batch_size, num_blocks, num_heads, dim)`.
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer

    def build(self, input_shape: Shape) -> None:
        _, num_heads, _, block_size, dim = input_shape
        self.positions = self.add_weight(
            name="positions",
            shape=(num_heads, block_size, dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.up = make_projection(
            self, "up", (None, self.hidden_dim), equation="bgntd,tdh->bngh", bias_axes="h"
        )
        self.down = make_projection(
            self, "down", (None, dim), equation="bngh,hd->bngd", bias_axes="d"
        )
        self.up.build(input_shape)
        self.down.build((None, None, num_heads, self.hidden_dim))

    def call(self, inputs: Any) -> Any:
        positions = ops.cast(ops.expand_dims(self.positions, 1), inputs.dtype)
        return self.down(ops.silu(self.up(inputs + positions)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch_size, num_heads, num_blocks, _, dim = input_shape
        return batch_size, num_blocks, num_heads, dim
