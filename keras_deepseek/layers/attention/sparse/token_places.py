"""Reads and writes tokens by their numbers, in tensors with heads.

Shape suffixes: B batch, G heads, P places, K moved tokens, D size of a head.
"""

from typing import Any

from keras import ops


def take_places(x: Any, indices: Any) -> Any:
    """Gathers entries (BGKD) from `x` (BGPD) by their indices `indices` (BK)."""
    rows = _number_rows(x, indices)
    entries = ops.take(ops.reshape(x, (-1, x.shape[-1])), ops.reshape(rows, (-1,)), axis=0)
    return ops.reshape(entries, (-1, x.shape[1], indices.shape[1], x.shape[-1]))


def put_places(x: Any, indices: Any, updates: Any) -> Any:
    """Returns a copy of `x` (BGPD) with `updates` (BGKD) written at the indices `indices` (BK)."""
    dim = x.shape[-1]
    rows = ops.reshape(_number_rows(x, indices), (-1, 1))
    updates = ops.reshape(ops.cast(updates, x.dtype), (-1, dim))
    return ops.reshape(
        ops.scatter_update(ops.reshape(x, (-1, dim)), rows, updates), (-1, *x.shape[1:])
    )


def _number_rows(x: Any, indices: Any) -> Any:
    """Converts indices `indices` to indices (BGK) into `x` with its first three axes flattened."""
    num_heads, num_places = x.shape[1:3]
    rows = ops.arange(ops.shape(x)[0] * num_heads, dtype="int32") * num_places
    return ops.reshape(rows, (-1, num_heads, 1)) + ops.expand_dims(indices, 1)
