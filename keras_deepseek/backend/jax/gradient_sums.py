"""Sums of gradients over devices, exact or compressed, inside one program for all devices."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from keras_deepseek.backend.processes.gradient_buckets import cut_into_buckets
from keras_deepseek.backend.processes.gradient_compression import Compression
from keras_deepseek.backend.processes.low_rank_sums import sum_low_rank


class GradientSums:
    """Sums gradients over the devices of the mesh axis that divides the batch."""

    def __init__(self, axis: str, num_devices: int) -> None:
        self._axis = axis
        self._num_devices = num_devices

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns the sum of each tensor over all devices.

        The tensors come in the reverse of the order in which the backward pass finds them.
        """
        sums: list[Any] = []
        for bucket in _cut(tensors[::-1]):
            sums += _split(jax.lax.psum(_flatten(bucket), self._axis), bucket)
        return sums[::-1]

    def scatter(self, tensors: Sequence[Any], axes: Sequence[int | None]) -> list[Any]:
        """Returns this device's part of the sum of each tensor, along the tensor's axis.

        A tensor whose axis is `None` is returned whole.
        """
        pairs = list(zip(tensors, axes, strict=True))
        whole = iter(self.sum([tensor for tensor, axis in pairs if axis is None]))
        divided = [
            jnp.stack(jnp.split(tensor, self._num_devices, axis))
            for tensor, axis in pairs
            if axis is not None
        ]
        parts: list[Any] = []
        for bucket in _cut(divided[::-1]):
            rows = jnp.concatenate([rows.reshape(len(rows), -1) for rows in bucket], 1)
            # A reduce-scatter of gloo may be wrong (jax#40830).
            received = jax.lax.all_to_all(rows, self._axis, 0, 0)
            # One after another, as the sum of the whole gradients is made.
            parts += _split(functools.reduce(jnp.add, received), [rows[0] for rows in bucket])
        of_device = iter(parts[::-1])
        return [next(whole if axis is None else of_device) for axis in axes]

    def gather(self, parts: Sequence[Any], axes: Sequence[int]) -> list[Any]:
        """Returns whole tensors from this device's part of each, along the tensor's axis."""
        whole: list[Any] = []
        axes_left = iter(axes)
        for bucket in _cut(parts):
            of_devices = jax.lax.all_gather(_flatten(bucket), self._axis)
            rows = [_split(row, bucket) for row in of_devices]
            columns = zip(*rows, strict=True)
            whole += [jnp.concatenate(column, next(axes_left)) for column in columns]
        return whole

    def sum_compressed(
        self, gradients: Sequence[Any], compression: Compression, residual: Any
    ) -> tuple[list[Any], Any]:
        """Returns the sums of float32 gradients, and this device's compression residual."""
        num_weights = sum(tensor.size for tensor in gradients)
        old_residual, factors = residual[:num_weights], residual[num_weights:]
        sums: list[Any] = []
        residuals: list[Any] = []
        next_factors: list[Any] = []
        start = 0
        for bucket in _cut(gradients[::-1]):
            flat = _flatten(bucket)
            exact = old_residual[start : start + flat.size] + flat / compression.scale
            start += flat.size
            kind = compression.kind
            if isinstance(kind, str):
                total, bucket_residual = self._sum_rounded(exact, kind)
            else:
                shapes = [tensor.shape for tensor in bucket]
                total, bucket_residual, bucket_factors = sum_low_rank(
                    exact, shapes, kind, factors, self._sum_as_one, self._sum_as_one
                )
                factors = factors[sum(factor.size for factor in bucket_factors) :]
                next_factors += bucket_factors
            residuals.append(bucket_residual)
            sums += _split(total, bucket)
        return sums[::-1], jnp.concatenate([*residuals, *next_factors])

    def _sum_rounded(self, exact: Any, dtype: str) -> tuple[Any, Any]:
        """Sums a float32 vector over devices, which send it in half precision.

        Also returns this device's rounding errors. Each device adds up one part of the vector in
        float32. A ring reduction would round at each hop.
        """
        length = -(-exact.size // self._num_devices)
        padding = length * self._num_devices - exact.size
        rows = jnp.pad(exact, (0, padding)).reshape(self._num_devices, length)
        sent, scales = _round(rows, dtype)
        received, received_scales = jax.lax.all_to_all((sent, scales), self._axis, 0, 0)
        # `jnp.sum` over the rows takes fifteen times as long on a CPU.
        total = functools.reduce(jnp.add, _widen(received, received_scales, dtype))[None]
        gathered, gathered_scales = jax.lax.all_gather(
            shared := _round(total, dtype), self._axis, tiled=True
        )
        device_mask = jax.nn.one_hot(jax.lax.axis_index(self._axis), self._num_devices)[:, None]
        errors = rows - _widen(sent, scales, dtype) + device_mask * (total - _widen(*shared, dtype))
        summed = _widen(gathered, gathered_scales, dtype)
        return summed.reshape(-1)[: exact.size], errors.reshape(-1)[: exact.size]

    def _sum_as_one(self, tensors: Sequence[Any]) -> list[Any]:
        """Sums each tensor of a list over all processes by one all-reduce."""
        if not tensors:
            return []
        return _split(jax.lax.psum(_flatten(tensors), self._axis), tensors)


def _round(rows: Any, dtype: str) -> tuple[Any, Any]:
    """Rounds rows to half precision; returns their bits as integers, and each row's scale.

    The scale is 1 except for float16, whose range is small. Every engine can send integers.
    """
    scales = jnp.ones(len(rows))
    if dtype == "float16":
        largest = jnp.max(jnp.abs(rows))
        exponent = jnp.frexp(largest)[1] - 1
        scale = jnp.ldexp(jnp.float32(1.0), jnp.clip(14 - exponent, -126, 126))
        scales *= jnp.where(jnp.isfinite(largest), scale, 1.0)
    rounded = (rows * scales[:, None]).astype(dtype)
    return jax.lax.bitcast_convert_type(rounded, jnp.uint16), scales


def _widen(bits: Any, scales: Any, dtype: str) -> Any:
    rounded = jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype))
    return rounded.astype("float32") / scales[:, None]


def _cut(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    return cut_into_buckets(tensors, lambda tensor: int(tensor.nbytes))


def _flatten(tensors: Sequence[Any]) -> Any:
    return jnp.concatenate([tensor.reshape(-1) for tensor in tensors])


def _split(flat: Any, like: Sequence[Any]) -> list[Any]:
    ends = [sum(tensor.size for tensor in like[: index + 1]) for index in range(len(like))]
    parts = jnp.split(flat, ends[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
