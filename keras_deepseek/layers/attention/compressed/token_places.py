"""Functions that move real tokens in front of padding, in tensors with heads.

A layer that cuts a sequence into blocks must cut it at the same tokens however it is padded. So the
real tokens of each sequence move to its beginning, and back at the end.

Shape suffixes: B batch, S length, G heads, P places, K moved tokens, D size of a head.
"""

from typing import Any

from keras import ops


def number_tokens(mask: Any) -> Any:
    """Returns each token's index (BS) after real tokens are moved in front of padding, in order.

    The mask (BS) is false at padding.
    """
    real = ops.cast(mask, "int32")
    numbers = ops.cumsum(real, axis=1) - 1
    after = ops.sum(real, axis=1, keepdims=True) + ops.cumsum(1 - real, axis=1) - 1
    return ops.cast(ops.where(ops.cast(mask, "bool"), numbers, after), "int32")


def count_tokens(mask: Any, index: Any) -> Any:
    """Returns the number of real tokens (B) before a cache slot, from the slots' mask (BS)."""
    slots = ops.arange(mask.shape[1], dtype="int32")
    is_before = ops.logical_and(mask, slots < ops.cast(index, "int32"))
    return ops.sum(ops.cast(is_before, "int32"), axis=1)


def take_tokens(x: Any, numbers: Any) -> Any:
    """Gathers tokens (BKD) from `x` (BSD) by their indices `numbers` (BK)."""
    return ops.take_along_axis(x, ops.expand_dims(numbers, -1), axis=1)


def take_places(x: Any, places: Any) -> Any:
    """Gathers entries (BGKD) from `x` (BGPD) by their indices `places` (BK)."""
    rows = _number_rows(x, places)
    taken = ops.take(ops.reshape(x, (-1, x.shape[-1])), ops.reshape(rows, (-1,)), axis=0)
    return ops.reshape(taken, (-1, x.shape[1], places.shape[1], x.shape[-1]))


def put_places(x: Any, places: Any, updates: Any) -> Any:
    """Returns a copy of `x` (BGPD) with `updates` (BGKD) written at the indices `places` (BK)."""
    dim = x.shape[-1]
    rows = ops.reshape(_number_rows(x, places), (-1, 1))
    updates = ops.reshape(ops.cast(updates, x.dtype), (-1, dim))
    return ops.reshape(
        ops.scatter_update(ops.reshape(x, (-1, dim)), rows, updates), (-1, *x.shape[1:])
    )


def _number_rows(x: Any, places: Any) -> Any:
    """Converts indices `places` to indices (BGK) into `x` with its first three axes flattened."""
    num_heads, num_places = x.shape[1:3]
    rows = ops.arange(ops.shape(x)[0] * num_heads, dtype="int32") * num_places
    return ops.reshape(rows, (-1, num_heads, 1)) + ops.expand_dims(places, 1)
