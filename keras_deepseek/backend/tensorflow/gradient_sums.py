"""Sums of gradients over processes, exact or compressed, as operations of a compiled step.

The graph's executor runs each operation as soon as its inputs are known. So it sums gradients while
it computes others.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_deepseek.backend.processes.gradient_buckets import cut_into_buckets
from keras_deepseek.backend.processes.gradient_compression import Compression
from keras_deepseek.backend.processes.low_rank_sums import sum_low_rank

_LEAST_BYTES = 256  # A reduction of 64 bytes or less never fails when a peer has ended.
_IN_STEPS, _FIRST, _SECOND = range(20_001, 20_004)
"""Group keys of collective operations. Instance keys count within a group, so that none depends on
calls in another group."""


class Collectives:
    """Collective operations over all ranks, with a timeout in seconds."""

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self._options = {
            "group_size": world_size,
            "ordering_token": [],
            "timeout_seconds": timeout,
        }

    def reduce(self, vector: Any, group: int, key: int) -> Any:
        """Sums a vector over all ranks, which call this with the same key and group."""
        size = vector.shape.num_elements()
        padding = max(0, -(-_LEAST_BYTES // vector.dtype.size) - size)
        summed = tf.raw_ops.CollectiveReduceV2(
            input=tf.pad(vector, [[0, padding]]) if padding else vector,
            group_key=group,
            instance_key=key,
            merge_op="Add",
            final_op="Id",
            **self._options,
        )
        return summed[:size] if padding else summed

    def sum(self, tensors: Sequence[Any], gradients: Sequence[Any], key: int) -> list[Any]:
        """Sums small tensors of one dtype, and gradients, over all ranks.

        `key` is the first of as many keys as there are tensors and gradients, plus one.
        """
        # Gradients in the order of the backward pass.
        buckets = [list(tensors), *_cut(gradients[::-1])]

        def reduce(flat: Any, bucket: list[Any], index: int) -> Any:
            return self.reduce(flat, _IN_STEPS, key + index)

        sums = _sum_buckets(buckets, reduce)
        return sums[: len(tensors)] + sums[len(tensors) :][::-1]

    def sum_compressed(
        self, gradients: Sequence[Any], compression: Compression, key: int
    ) -> tuple[list[Any], Any]:
        """Sums float32 gradients over all ranks with compression; also returns the next residual.

        A residual is a vector: what was not sent of each gradient, then the low-rank factors. `key`
        is the first of as many keys as there are gradients, plus one.
        """
        residual = tf.convert_to_tensor(compression.residual.value)
        num_weights = sum(tensor.shape.num_elements() for tensor in gradients)
        old_residual, factors = residual[:num_weights], residual[num_weights:]
        residuals: list[Any] = []
        next_factors: list[Any] = []
        start = 0  # Where the next bucket begins in the residual.

        def reduce(flat: Any, bucket: list[Any], index: int) -> Any:
            nonlocal start, factors
            exact = (
                old_residual[start : start + flat.shape.num_elements()] + flat / compression.scale
            )
            start += flat.shape.num_elements()
            kind = compression.kind
            if isinstance(kind, str):
                total, bucket_residual = self._sum_rounded(exact, kind, key + index)
            else:
                shapes = [tensor.shape.as_list() for tensor in bucket]
                total, bucket_residual, bucket_factors = sum_low_rank(
                    exact,
                    shapes,
                    kind,
                    factors,
                    lambda tensors: self._reduce_all(tensors, _FIRST, key + index),
                    lambda tensors: self._reduce_all(tensors, _SECOND, key + index),
                )
                factors = factors[sum(factor.shape.num_elements() for factor in bucket_factors) :]
                next_factors.extend(bucket_factors)
            residuals.append(bucket_residual)
            return total

        # In the order of the backward pass.
        sums = _sum_buckets(list(_cut(gradients[::-1])), reduce)
        return sums[::-1], tf.concat([*residuals, *next_factors], 0)

    def _sum_rounded(self, exact: Any, dtype: str, key: int) -> tuple[Any, Any]:
        """Sums a float32 vector over ranks, which send it in half precision.

        Also returns this rank's rounding errors. Each rank adds up one part of the vector in
        float32. A ring reduction would round at each hop.
        """
        size = exact.shape.num_elements()
        length = -(-size // self.world_size)
        rows = tf.reshape(
            tf.pad(exact, [[0, length * self.world_size - size]]), [self.world_size, length]
        )
        sent = _round(rows, dtype)
        received = self.exchange(sent, key)
        total = tf.reduce_sum(_widen(received, dtype), axis=0, keepdims=True)
        shared = _round(total, dtype)
        gathered = self.gather(shared[0], key)
        rank_mask = tf.one_hot([self.rank], self.world_size, axis=0)
        errors = rows - _widen(sent, dtype) + rank_mask * (total - _widen(shared, dtype))
        summed = tf.reshape(_widen(gathered, dtype), [-1])[:size]
        return summed, tf.reshape(errors, [-1])[:size]

    def exchange(self, rows: Any, key: int) -> Any:
        """Sends a row to each rank, in their order; returns the rows that they have sent."""
        return tf.raw_ops.CollectiveAllToAllV2(
            input=rows, group_key=_FIRST, instance_key=key, **self._options
        )

    def gather(self, row: Any, key: int) -> Any:
        """Returns the rows of all ranks, in their order."""
        return tf.raw_ops.CollectiveGatherV2(
            input=row[None], group_key=_SECOND, instance_key=key, **self._options
        )

    def _reduce_all(self, tensors: Sequence[Any], group: int, key: int) -> list[Any]:
        """Sums each tensor of a list over all ranks by one all-reduce."""
        if not tensors:
            return []
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
        return _split(self.reduce(flat, group, key), tensors)


def _sum_buckets(
    buckets: Sequence[list[Any]], reduce: Callable[[Any, list[Any], int], Any]
) -> list[Any]:
    """Sums each tensor of a list over all ranks, bucket by bucket, each bucket as one vector."""
    sums: list[Any] = []
    for index, bucket in enumerate(buckets):
        # NCCL needs the same order on all ranks.
        waits_for = sums[-1:] if tf.config.list_logical_devices("GPU") else []
        with tf.control_dependencies(waits_for):
            flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in bucket], 0)
            sums += _split(reduce(flat, bucket, index), bucket)
    return sums


def _cut(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    return cut_into_buckets(
        tensors, lambda tensor: int(tensor.dtype.size * tensor.shape.num_elements())
    )


def _round(rows: Any, dtype: str) -> Any:
    """Rounds rows to half precision, for sending. A float16 row starts with its float32 scale.

    bfloat16 is bit-cast to float16, the only one that collective operations know.
    """
    if dtype == "bfloat16":
        return tf.bitcast(tf.cast(rows, tf.bfloat16), tf.float16)
    largest = tf.reduce_max(tf.abs(rows))
    # The bits of the exponent. Numbers that are not finite stay so.
    exponent = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), 23) - 127
    scale = 2.0 ** tf.cast(tf.clip_by_value(14 - exponent, -126, 126), tf.float32)
    scale = tf.where(tf.math.is_finite(largest), scale, 1.0)
    heads = tf.broadcast_to(tf.bitcast(scale, tf.float16), [rows.shape[0], 2])
    return tf.concat([heads, tf.cast(rows * scale, tf.float16)], 1)


def _widen(rows: Any, dtype: str) -> Any:
    if dtype == "bfloat16":
        return tf.cast(tf.bitcast(rows, tf.bfloat16), tf.float32)
    return tf.cast(rows[:, 2:], tf.float32) / tf.bitcast(rows[:, :2], tf.float32)[:, None]


def _split(flat: Any, like: Sequence[Any]) -> list[Any]:
    parts = tf.split(flat, [tensor.shape.num_elements() for tensor in like])
    return [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, like, strict=True)]
