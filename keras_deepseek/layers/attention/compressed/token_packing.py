"""Packing: moves real tokens in front of padding, so that windows contain no padding.

`CompressedSparseAttention` and others cut a sequence into windows. No window may contain padding,
so the real tokens move to the front first, and the outputs move back at the end. In between row n
is the n-th real token. Causality alone then hides the padding, which comes last.

With a cache, earlier calls had tokens too, as many in each sequence as were real. The last few of
them stand in front of the call's own tokens, the newest last.

Shape suffixes: B batch, T tokens of a call, R recent tokens from a cache, S slots of a cache, D
size. Numbers that are the same in all sequences have a batch of 1.
"""

from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_deepseek.backend.call_context import known_size
from keras_deepseek.layers.position.start_index import by_row


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """The tokens of a call, reordered so that each sequence's real tokens precede its padding.

    Args:
        inputs: Tensor (BTD).
        positions: Integer tensor (BT).
        num_before: Integer tensor of shape `(B, 1)`. The number of real tokens of earlier calls.
        num_real: Integer tensor of shape `(B, 1)`. The number of real tokens in this call.
        new_rows: Integer tensor (BT). The row to which each token moved; `None` if none moved.
    """

    inputs: Any
    positions: Any
    num_before: Any
    num_real: Any
    new_rows: Any = None

    @property
    def length(self) -> Any:
        """The sequence length of the call (T), an integer if it is known."""
        return ops.shape(self.inputs)[1]

    @property
    def ranks(self) -> Any:
        """For each token, the number of real tokens before it, earlier calls included (BT)."""
        return self.num_before + ops.arange(self.length, dtype="int32")

    def unpack(self, outputs: Any) -> Any:
        """Returns outputs of packed tokens (BTD) in the original order of the tokens."""
        return outputs if self.new_rows is None else take_rows(outputs, self.new_rows)


def pack_tokens(
    inputs: Any, mask: Any = None, positions: Any = None, num_before: Any = None
) -> PackedTokens:
    """Returns a call's tokens (BTD) with the real ones moved in front of padding, in order.

    The mask is (BT). Positions are `(B, T)` or `(1, T)`; `None` counts the real tokens.
    `num_before`, the real tokens of earlier calls, is `(B, 1)`; `None` is 0.
    """
    batch_size, length = ops.shape(inputs)[:2]
    if positions is not None and not (mask is None and num_before is None):
        positions = ops.broadcast_to(positions, (batch_size, length))
    is_first = num_before is None
    num_before = ops.zeros((1, 1), "int32") if is_first else num_before
    num_real, new_rows = ops.cast(ops.reshape(length, (1, 1)), "int32"), None
    if mask is not None:
        mask = ops.cast(mask, "bool")
        counts = ops.cumsum(ops.cast(mask, "int32"), axis=1)
        num_real, new_rows = counts[:, -1:], ops.maximum(counts - 1, 0)
        steps = ops.arange(length, dtype="int32")
        order = ops.argsort(ops.where(mask, steps, steps + length), axis=1)
        inputs = take_rows(inputs, order)
        positions = None if positions is None else take_rows(positions, order)
    if positions is None:
        positions = num_before + ops.arange(length, dtype="int32")
    return PackedTokens(inputs, ops.cast(positions, "int32"), num_before, num_real, new_rows)


def count_tokens(mask: Any, index: Any) -> Any:
    """Returns the number of real tokens (B) before a cache slot, from the slots' mask (BS).

    The index is that slot: one for all sequences, or one each.
    """
    slots = ops.arange(mask.shape[1], dtype="int32")
    is_before = ops.logical_and(mask, slots < by_row(index))
    return ops.sum(ops.cast(is_before, "int32"), axis=1)


def count_missing(size: Any, least: int) -> Any:
    """Returns by how much a size is smaller than the least size, or 0. Both are positive."""
    if isinstance(size, int):  # Written in arithmetic, as a free size of a traced program needs.
        return (least - size) * (1 // (size // least + 1))
    return ops.maximum(least - size, 0)


def take_rows(x: Any, indices: Any) -> Any:
    """Gathers rows of each sequence by their indices.

    `x` is `(B, S, ...)`; the indices, from 0 to S - 1, are `(B, ...)` or `(1, ...)`. The result has
    the shape of `indices`, then that of a row of `x`.
    """
    if known_size(indices.shape[0]) == 1:
        return ops.take(x, indices[0], axis=1)
    batch_size, length, *row = ops.shape(x)
    if known_size(batch_size) == 0:  # JAX's `take` fails on an empty batch.
        return ops.zeros((*ops.shape(indices), *row), x.dtype)
    firsts = ops.arange(batch_size, dtype="int32") * length
    firsts = ops.reshape(firsts, (batch_size, *[1] * (len(indices.shape) - 1)))
    return ops.take(ops.reshape(x, (batch_size * length, *row)), indices + firsts, axis=0)


def join_recent(recent: Any, new: Any, tokens: PackedTokens) -> tuple[Any, Any]:
    """Joins the last tokens of earlier calls (BRD) and new tokens (BTD).

    Returns the joined tokens (B, R + T, D), and the last R real ones of these to keep (BRD).
    """
    joined = ops.concatenate([recent, ops.cast(new, recent.dtype)], axis=1)
    last = tokens.num_real + ops.arange(recent.shape[1], dtype="int32")
    return joined, take_rows(joined, last)
