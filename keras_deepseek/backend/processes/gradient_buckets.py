"""Buckets that group gradients, so that each bucket is summed over processes at once."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

BUCKET_BYTES = 4 * 2**20
"""The least bytes of a bucket. It is summed while the next one is computed."""
_Item = TypeVar("_Item")


def cut_into_buckets(
    tensors: Sequence[Any], count_bytes: Callable[[Any], int]
) -> Iterator[list[Any]]:
    """Yields lists of tensors of one dtype, each as soon as it has a bucket's number of bytes."""
    for _, of_dtype in itertools.groupby(tensors, lambda tensor: tensor.dtype):
        yield from group_by_bytes(of_dtype, count_bytes)


def group_by_bytes(
    items: Iterable[_Item], count_bytes: Callable[[_Item], int], least_bytes: int = BUCKET_BYTES
) -> Iterator[list[_Item]]:
    """Yields lists of items, each as soon as it has a number of bytes."""
    bucket: list[_Item] = []
    size = 0
    for item in items:
        bucket.append(item)
        size += count_bytes(item)
        if size >= least_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
