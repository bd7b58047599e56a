"""Training on several devices or processes with JAX."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.jax.processes import join_processes, translate_peer_errors
from keras_deepseek.backend.keras_private.trainers import (
    changed_data_distribution,
    changed_steps,
    distribute_array,
)
from keras_deepseek.backend.keras_private.variables import place_by_layout
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.backend.processes.shared_threads import share_threads
from keras_deepseek.backend.protocols.distribution import Distribution, KerasDistribution
from keras_deepseek.errors import NotSupportedError


class JaxDistribution(Distribution):
    """Implements `Distribution` by Keras's distributions and `jax.distributed`."""

    def spread_over_devices(self, devices: Sequence[str] | None = None) -> KerasDistribution | None:
        if devices is not None:
            if len({device.split(":")[0] for device in devices}) > 1:
                raise NotSupportedError(
                    f"device_map asks for {list(devices)}, but one program of JAX runs on devices "
                    "of one kind. Name one kind, or train on TensorFlow or PyTorch."
                )
            return keras.distribution.DataParallel(devices=list(devices), auto_shard_dataset=False)
        if jax.device_count() == 1:
            return None
        return keras.distribution.DataParallel(auto_shard_dataset=False)

    def distributed(self, distribution: KerasDistribution) -> AbstractContextManager[None]:
        return _in_scope(distribution)

    def place_variables(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:
            place_by_layout(variable)

    def count_processes(self) -> int:
        return int(jax.process_count())

    def process_rank(self) -> int:
        return int(jax.process_index())

    def read_whole(self, value: Any) -> Array:
        if (
            not isinstance(value, jax.Array)
            or value.is_fully_addressable
            or value.is_fully_replicated
        ):
            return np.asarray(value)
        with translate_peer_errors("read a variable that is shared out"):
            whole: Array = multihost_utils.process_allgather(value, tiled=True)
        return whole

    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        return join_processes(
            coordinator, world_size, rank, join_timeout=join_timeout, timeout=timeout
        )


@contextmanager
def _in_scope(distribution: KerasDistribution) -> Iterator[None]:
    """Context manager that activates a distribution, for batches of any number of rows.

    A batch that can't be divided into equal parts is put on every device as a whole; Keras itself
    fails there. On CPU devices that share threads, each step ends before the next begins: see
    `share_threads`.
    """

    def distribute(batch: Any, layout: Any, batch_dim_name: str) -> Any:
        sharding = _fitting(layout, np.shape(batch))
        if sharding.is_fully_addressable:
            return jax.device_put(batch, sharding)
        # Each process has the whole batch, and passes its devices their rows.
        array = np.asarray(batch)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    with contextlib.ExitStack() as stack:
        stack.enter_context(changed_data_distribution(distribute))
        if share_threads(distribution.device_mesh.backend_mesh.local_devices):
            stack.enter_context(changed_steps(jax.block_until_ready))
        stack.enter_context(distribution.scope())
        yield


def place_batch(batch: Any) -> Any:
    """Puts a batch on the devices of the active distribution, if there is one."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return batch
    return keras.tree.map_structure(
        lambda array: None if array is None else distribute_array(array, distribution), batch
    )


def _fitting(layout: Any, shape: Sequence[int]) -> jax.sharding.Sharding:
    """Returns a layout's sharding, or full replication if it can't divide the shape equally."""
    sharding: NamedSharding = getattr(layout, "backend_layout", layout)
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError:
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding
