"""Which gradients are summed over processes together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

BUCKET_BYTES = 4 * 2**20
"""Of one bucket: it is summed while the next is computed, or copied together."""


def cut_into_buckets(
    tensors: Sequence[Any], count_bytes: Callable[[Any], int]
) -> Iterator[list[Any]]:
    """Yields tensors in groups of one dtype, which end with the one that makes them large enough.

    Args:
        tensors: Tensors of the framework's.
        count_bytes: Function from one of them to its bytes.
    """
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
