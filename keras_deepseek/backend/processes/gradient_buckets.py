"""Buckets of gradients that are summed over processes together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

BUCKET_BYTES = 4 * 2**20
"""The least bytes of a bucket. It is summed while the next one is computed."""


def cut_into_buckets(
    tensors: Sequence[Any], count_bytes: Callable[[Any], int]
) -> Iterator[list[Any]]:
    """Yields tensors in groups of one dtype, each ended by the tensor that fills its bytes."""
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
