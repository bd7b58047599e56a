"""Tokens by their own number, where padding stands between them or before them.

What cuts a sequence into blocks cuts it at the same tokens only if padding does not count. So the
real tokens of each sequence are moved together, to its beginning, and back at the end.

Legend: B batch, S length, G heads, P places, K of them, D size of a head.
"""

from typing import Any

from keras import ops


def number_tokens(mask: Any) -> Any:
    """Returns the place of each token with the real ones first, in their order.

    Args:
        mask: Boolean tensor of shape `(B, S)`, false at padding.

    Returns:
        An integer tensor of shape `(B, S)`.
    """
    real = ops.cast(mask, "int32")
    numbers = ops.cumsum(real, axis=1) - 1
    after = ops.sum(real, axis=1, keepdims=True) + ops.cumsum(1 - real, axis=1) - 1
    return ops.cast(ops.where(ops.cast(mask, "bool"), numbers, after), "int32")


def count_tokens(mask: Any, index: Any) -> Any:
    """Returns how many real tokens stand before a slot, an integer tensor of shape `(B,)`.

    Args:
        mask: Boolean tensor of shape `(B, S)`.
        index: integer or integer scalar tensor. The slot.
    """
    slots = ops.arange(mask.shape[1], dtype="int32")
    is_before = ops.logical_and(mask, slots < ops.cast(index, "int32"))
    return ops.sum(ops.cast(is_before, "int32"), axis=1)


def take_tokens(x: Any, numbers: Any) -> Any:
    """Returns the tokens of these numbers, for each sequence its own.

    Args:
        x: Tensor of shape `(B, S, D)`.
        numbers: Integer tensor of shape `(B, K)`.

    Returns:
        A tensor of shape `(B, K, D)`.
    """
    return ops.take_along_axis(x, ops.expand_dims(numbers, -1), axis=1)


def take_places(x: Any, places: Any) -> Any:
    """Returns what stands at these places, for each sequence its own.

    Args:
        x: Tensor of shape `(B, G, P, D)`.
        places: Integer tensor of shape `(B, K)`.

    Returns:
        A tensor of shape `(B, G, K, D)`.
    """
    rows = _number_rows(x, places)
    taken = ops.take(ops.reshape(x, (-1, x.shape[-1])), ops.reshape(rows, (-1,)), axis=0)
    return ops.reshape(taken, (-1, x.shape[1], places.shape[1], x.shape[-1]))


def put_places(x: Any, places: Any, updates: Any) -> Any:
    """Returns a tensor with other contents at these places, for each sequence its own.

    Args:
        x: Tensor of shape `(B, G, P, D)`.
        places: Integer tensor of shape `(B, K)`.
        updates: Tensor of shape `(B, G, K, D)`.

    Returns:
        A tensor of the shape of `x`.
    """
    dim = x.shape[-1]
    rows = ops.reshape(_number_rows(x, places), (-1, 1))
    updates = ops.reshape(ops.cast(updates, x.dtype), (-1, dim))
    return ops.reshape(
        ops.scatter_update(ops.reshape(x, (-1, dim)), rows, updates), (-1, *x.shape[1:])
    )


def _number_rows(x: Any, places: Any) -> Any:
    """Returns where places stand once the first three axes of `x` are one, of shape (B, G, K)."""
    num_heads, num_places = x.shape[1:3]
    rows = ops.arange(ops.shape(x)[0] * num_heads, dtype="int32") * num_places
    return ops.reshape(rows, (-1, num_heads, 1)) + ops.expand_dims(places, 1)
