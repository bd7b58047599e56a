"""Buckets that group gradients, so that each bucket is summed over processes at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

BUCKET_BYTES = 4 * 2**20
"""The least bytes of a bucket. It is summed while the next one is computed."""


def cut_into_buckets(
    tensors: Sequence[Any], count_bytes: Callable[[Any], int]
) -> Iterator[list[Any]]:
    """Yields lists of tensors of one dtype, each as soon as it has a bucket's number of bytes."""
    bucket: list[Any] = []
    size = 0
    for tensor in tensors:
        if bucket and not (tensor.dtype == bucket[0].dtype and size < BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += count_bytes(tensor)
    if bucket:
        yield bucket
