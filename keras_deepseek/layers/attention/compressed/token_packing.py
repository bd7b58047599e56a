"""Padding moved out of the way: what layers are written with that count in real tokens.

`CompressedSparseAttention` and its kin cut a sequence into windows. Padding must enter none of
them, wherever it stands, so the real tokens are moved to the front before anything else, and the
outputs back at the end. In between the n-th row is the n-th real token, and all that has to hide
the padding behind them is that no token looks ahead.

With a cache a call has tokens before it, as many in each sequence as were real. What it needs of
them are the last few: these stand in front of its own, the newest last.

Legend: B batch, L length of a call, R recent tokens that were kept, D size. Numbers that are the
same in all sequences have a batch of 1.
"""

from dataclasses import dataclass
from typing import Any

from keras import ops


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """The tokens of a call, the real ones first.

    Args:
        inputs: Tensor of shape `(B, L, D)`.
        positions: Integer tensor of shape `(B, L)`.
        num_before: Integer tensor of shape `(B, 1)`. How many real tokens came in earlier calls.
        num_real: Integer tensor of shape `(B, 1)`. How many of these are real.
        places: Integer tensor of shape `(B, L)`, or `None` where nothing was moved. The row that
            each token stands in.
    """

    inputs: Any
    positions: Any
    num_before: Any
    num_real: Any
    places: Any = None

    @property
    def length(self) -> Any:
        """L, an integer where it is known."""
        return ops.shape(self.inputs)[1]

    @property
    def ranks(self) -> Any:
        """How many real tokens come before each in its sequence, of shape `(B, L)`."""
        return self.num_before + ops.arange(self.length, dtype="int32")

    def unpack(self, outputs: Any) -> Any:
        """Returns the outputs of packed tokens where the tokens stood.

        Args:
            outputs: Tensor of shape `(B, L, D)`.
        """
        return outputs if self.places is None else take_rows(outputs, self.places)


def pack_tokens(
    inputs: Any, mask: Any = None, positions: Any = None, num_before: Any = None
) -> PackedTokens:
    """Returns the tokens of a call with the real ones first, in their order.

    Args:
        inputs: Tensor of shape `(B, L, D)`.
        mask: Boolean tensor of shape `(B, L)`, or `None` for no padding. Defaults to `None`.
        positions: Integer tensor of shape `(B, L)` or `(1, L)`, or `None` to count the real tokens.
            Defaults to `None`.
        num_before: Integer tensor of shape `(B, 1)`, or `None` for none. Defaults to `None`.
    """
    batch_size, length = ops.shape(inputs)[:2]
    if positions is not None and not (mask is None and num_before is None):
        positions = ops.broadcast_to(positions, (batch_size, length))
    is_first = num_before is None
    num_before = ops.zeros((1, 1), "int32") if is_first else num_before
    num_real, places = ops.cast(ops.reshape(length, (1, 1)), "int32"), None
    if mask is not None:
        mask = ops.cast(mask, "bool")
        counts = ops.cumsum(ops.cast(mask, "int32"), axis=1)
        num_real, places = counts[:, -1:], ops.maximum(counts - 1, 0)
        steps = ops.arange(length, dtype="int32")
        order = ops.argsort(ops.where(mask, steps, steps + length), axis=1)
        inputs = take_rows(inputs, order)
        positions = None if positions is None else take_rows(positions, order)
    if positions is None:
        positions = num_before + ops.arange(length, dtype="int32")
    return PackedTokens(inputs, ops.cast(positions, "int32"), num_before, num_real, places)


def take_rows(x: Any, indices: Any) -> Any:
    """Returns rows of each sequence.

    Args:
        x: Tensor of shape `(B, S, ...)`.
        indices: Integer tensor of shape `(B, ...)`, from 0 to S - 1.

    Returns:
        A tensor of the shape of `indices`, and then that of a row of `x`.
    """
    if indices.shape[0] == 1:
        return ops.take(x, indices[0], axis=1)
    batch_size, length, *row = ops.shape(x)
    if isinstance(batch_size, int) and batch_size == 0:  # JAX takes nothing in another shape.
        return ops.zeros((*ops.shape(indices), *row), x.dtype)
    firsts = ops.arange(batch_size, dtype="int32") * length
    firsts = ops.reshape(firsts, (batch_size, *[1] * (len(indices.shape) - 1)))
    return ops.take(ops.reshape(x, (batch_size * length, *row)), indices + firsts, axis=0)


def join_recent(recent: Any, new: Any, tokens: PackedTokens) -> tuple[Any, Any]:
    """Returns recent tokens and those of a call behind them, and the last R of these that are real.

    Args:
        recent: Tensor of shape `(B, R, D)`.
        new: Tensor of shape `(B, L, D)`.
        tokens: `PackedTokens` of the call.

    Returns:
        Tensors of shape `(B, R + L, D)` and `(B, R, D)`.
    """
    joined = ops.concatenate([recent, ops.cast(new, recent.dtype)], axis=1)
    last = tokens.num_real + ops.arange(recent.shape[1], dtype="int32")
    return joined, take_rows(joined, last)
