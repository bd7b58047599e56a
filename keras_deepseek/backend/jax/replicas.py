"""The replication of a training step over the devices of several processes.

A compiler that places the sums itself sums the gradient of a weight that is used twice, such as a
tied embedding, twice. Here each device finds its gradients as if it were alone, and the program
says what is sent.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.jax.gradient_sums import GradientSums
from keras_deepseek.backend.keras_private.variables import NestedScope
from keras_deepseek.backend.processes.gradient_compression import Compression
from keras_deepseek.backend.processes.processes import ComputePart

_logger = logging.getLogger(__name__)

_AXIS = "batch"  # The name in the mesh of Keras's `DataParallel`.


class JaxReplicas:
    """The devices of all processes, as replicas of one program that divides its batch."""

    is_compilable = True

    def __init__(self) -> None:
        self._mesh = Mesh(np.array(jax.devices()), [_AXIS])
        self._sums = GradientSums(_AXIS, self._mesh.size)
        self._by_device = NamedSharding(self._mesh, PartitionSpec(_AXIS))
        self._has_seen_batch = False
        # Two sums outside of a step would otherwise compile twice.
        self._last: _Program | None = None
        self._divided_slots: list[keras.Variable] | None = None  # Those of a sharded optimizer.

    def divide_gradients(self, state: Sequence[keras.Variable]) -> None:
        """Divides the summed gradients among the devices from now on, along `divided_axis`.

        `state` is the divided state of the optimizer, which is left out of the replicas' program.
        """
        self._divided_slots = list(state)

    def own_random_numbers(self) -> AbstractContextManager[None]:
        """Does nothing, because Keras's layers draw random numbers by their own seeds."""
        return nullcontext()

    def add_up(self, scalar: Any) -> Any:
        """Returns `scalar`, because the program has that of the whole batch, not a replica's."""
        return scalar

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Computes losses and gradients on all devices, and sums them.

        Each device computes the whole batch if it can't be divided into equal parts.
        """
        if not self._can_divide(batch):
            return _compute_alone(compute, batch)
        axes = [
            None if self._divided_slots is None else divided_axis(variable.shape, self._mesh.size)
            for variable in variables
        ]
        sums, _ = self._compute(compute, batch, None, tuple(axes))
        return sums

    def sum_compressed(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        compression: Compression,
    ) -> tuple[list[Any], list[Any], list[Any], Callable[[], None]]:
        """Computes losses and gradients on all devices, and sums them with gradient compression."""
        if not self._can_divide(batch):
            scalars, counts, gradients = _compute_alone(compute, batch)
            gradients = [gradient / compression.scale for gradient in gradients]
            return scalars, counts, gradients, lambda: None

        axes = (None,) * len(variables)
        sums, new_residual = self._compute(compute, batch, compression, axes)
        return *sums, lambda: compression.residual.assign(new_residual)

    def gather_weights(self, weights: Sequence[keras.Variable]) -> None:
        """Makes updated weights whole on each device, which has only its part up to date.

        The compiler would send each weight on its own.
        """
        pairs = [(weight, divided_axis(weight.shape, self._mesh.size)) for weight in weights]
        divided = [weight for weight, axis in pairs if axis is not None]
        axes = [axis for _, axis in pairs if axis is not None]
        gather = jax.shard_map(
            functools.partial(self._sums.gather, axes=axes),
            mesh=self._mesh,
            in_specs=(list(map(_part_of, axes)),),
            out_specs=PartitionSpec(),
            check_vma=False,  # As in `_Program`.
        )
        values = gather([weight.value for weight in divided])
        for weight, value in zip(divided, values, strict=True):
            weight.assign(value)

    def _compute(
        self,
        compute: ComputePart,
        batch: Any,
        compression: Compression | None,
        axes: tuple[int | None, ...],
    ) -> tuple[tuple[list[Any], list[Any], list[Any]], Any]:
        """Computes on all devices; returns the sums, and the compression residuals."""
        # Captured values keep the layout of outside, which some operations reject.
        values = dict(NestedScope().state_mapping)
        residual = None if compression is None else compression.residual
        for variable in (residual, *(self._divided_slots or ())):
            values.pop(id(variable), None)
        program = self._last
        if values or program is None or not program.is_of(compute, compression, axes):
            program = _Program(compute, compression, self._mesh, self._sums, axes)
            self._last = None if values else program  # Nothing of a step may outlive its tracing.
        sums, changed, new_residual = program.run(
            values, batch, None if residual is None else residual.value
        )
        for variable, value in zip(program.assigned, changed, strict=True):
            variable.assign(value)
        return sums, new_residual

    def _can_divide(self, batch: Any) -> bool:
        """Returns True if a batch is divided among devices, as in `JaxDistribution.distributed`."""
        num_devices = self._mesh.size
        numbers = {array.shape[0] for array in jax.tree.leaves(batch)}
        is_divisible = all(number % num_devices == 0 for number in numbers)
        if not self._has_seen_batch:
            self._has_seen_batch = True
            if not is_divisible and jax.process_index() == 0:
                _logger.warning(
                    "A batch of %s rows can't be divided equally among %d devices: each of them "
                    "computes the whole batch, and gradients are not compressed. Choose a "
                    "batch_size that %d divides.",
                    *(max(numbers), num_devices, num_devices),
                )
        return is_divisible

    def own_variable(self, value: Array, name: str) -> keras.Variable:
        """Returns a float32 variable that differs by device and begins as `value`, a vector."""
        values = self._to_devices(np.tile(value, jax.local_device_count()))
        around = keras.distribution.distribution()
        keras.distribution.set_distribution(None)  # A distribution would give it one value on all.
        try:
            return keras.Variable(
                values, dtype="float32", trainable=False, autocast=False, name=name
            )
        finally:
            keras.distribution.set_distribution(around)

    def read_own(self, variable: keras.Variable) -> Array:
        """Returns the values on this process's devices of a variable made by `own_variable`."""
        shards = sorted(variable.value.addressable_shards, key=lambda shard: shard.index[0].start)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    def write_own(self, variable: keras.Variable, value: Array) -> None:
        """Restores this process's values of a variable from what `read_own` returned."""
        variable.assign(self._to_devices(value))

    def _to_devices(self, values: Array) -> jax.Array:
        return jax.make_array_from_process_local_data(self._by_device, values)


class _Program:
    """The compiled program in which each device computes its rows and sums with the others."""

    def __init__(
        self,
        compute: ComputePart,
        compression: Compression | None,
        mesh: Mesh,
        sums: GradientSums,
        axes: tuple[int | None, ...],
    ) -> None:
        self._compute = compute
        self._compression = compression
        self._sums = sums
        self._axes = axes
        self.assigned: list[keras.Variable] = []
        """The variables that the program assigned in its last run."""
        whole, parts = PartitionSpec(), PartitionSpec(_AXIS)
        gradients = [whole if axis is None else _part_of(axis) for axis in axes]
        self.run = jax.jit(
            jax.shard_map(
                self._run,
                mesh=mesh,
                in_specs=(whole, parts, parts),
                out_specs=((whole, whole, gradients), whole, parts),
                # The checker can't see that seeds and counts are equal on all devices.
                check_vma=False,
            )
        )
        """Function of the values of variables by `id`, a batch, and residuals or `None`."""

    def is_of(
        self,
        compute: ComputePart,
        compression: Compression | None,
        axes: tuple[int | None, ...],
    ) -> bool:
        """Returns True if the compiled program was made for these arguments."""
        is_same = self._compute is compute and self._compression is compression
        return is_same and self._axes == axes

    def _run(self, values: dict[int, Any], batch: Any, residual: Any) -> Any:
        with NestedScope() as scope:
            scope.state_mapping |= values
            scalars, finish = self._compute(jax.lax.axis_index(_AXIS), batch)
            scalar_sums = self._sums.sum(scalars)
            counts, gradients = finish(scalar_sums, None)
        self.assigned[:] = scope.assigned.values()
        changed = [scope.get_current_value(variable) for variable in self.assigned]
        if self._compression is None:
            sums = self._sums.scatter(gradients, self._axes)
        else:
            sums, residual = self._sums.sum_compressed(gradients, self._compression, residual)
        return (scalar_sums, self._sums.sum(counts), sums), changed, residual


def divided_axis(shape: Sequence[int], num_devices: int) -> int | None:
    """Returns the largest axis that a number of devices divides, or `None`."""
    sizes = {axis: size for axis, size in enumerate(shape) if size % num_devices == 0}
    return max(sizes, key=sizes.__getitem__) if sizes else None


def _part_of(axis: int) -> PartitionSpec:
    """Returns the layout of an array that devices divide along an axis."""
    return PartitionSpec(*[None] * axis, _AXIS)


def _compute_alone(compute: ComputePart, batch: Any) -> tuple[list[Any], list[Any], list[Any]]:
    scalars, finish = compute(0, batch)
    counts, gradients = finish(scalars, None)
    return scalars, counts, gradients
