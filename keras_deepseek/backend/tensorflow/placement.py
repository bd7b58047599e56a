"""Steps spread over several devices, of which each computes some of a batch's rows.

The variables stay on the first one, which makes the update, and the others read them from it; the
graph's executor runs the copies side by side. So the model is a plain one, without a scope of
`tf.distribute`, whose copies Keras's optimizers would clip and check one by one. Keras's own
distributions don't run on TensorFlow.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.artifacts.errors import InvalidInputError, NotSupportedError
from keras_deepseek.backend.keras_internals import Distribution
from keras_deepseek.backend.processes import ComputePart, Replicas


def spread_over_devices() -> Distribution | None:
    """Returns a distribution of batches over all devices; `None` where there is one alone."""
    return None


def replicate_over_devices(strategy: Any) -> Replicas | None:
    """Returns copies of a step on several devices of this process; `None` where there is one."""
    devices = _find_devices(strategy)
    return DeviceReplicas(devices) if len(devices) > 1 else None


class DeviceReplicas:
    """Copies of a step on devices of this process.

    Args:
        devices: list of strings. Their names.
    """

    is_compilable = False  # XLA compiles for one device.

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)

    def own_random_numbers(self) -> AbstractContextManager[None]:
        """Does nothing: layers of Keras draw by seeds of their own here."""
        return nullcontext()

    def count(self, num_rows: Any) -> Any:
        """Returns the number of the rows of all, a scalar."""
        return num_rows

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the sums of what all devices compute."""
        begun = []
        for rank, device in enumerate(self.devices):
            with tf.device("CPU:0"):  # Where the batch is: each device gets its rows alone.
                rows = keras.tree.map_structure(
                    lambda array, rank=rank: (
                        None if array is None else array[rank :: len(self.devices)]
                    ),
                    batch,
                )
            with tf.device(device):
                begun.append(compute(rank, rows))
        scalars = self._add([scalars for scalars, _ in begun])
        found = []
        for device, (_, finish) in zip(self.devices, begun, strict=True):
            with tf.device(device):
                found.append(finish(scalars, None))
        counts, gradients = map(self._add, zip(*found, strict=True))
        return scalars, counts, gradients

    def _add(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        with tf.device(self.devices[0]):
            return [tf.add_n(tensors) for tensors in zip(*parts, strict=True)]


def _find_devices(strategy: Any) -> list[str]:
    """Returns the names of the devices that a strategy spreads a step over."""
    if strategy == "allreduce":
        for kind in ("GPU", "CPU"):
            found = [device.name for device in tf.config.list_logical_devices(kind)]
            if found:
                return found
    one_process = tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy
    if isinstance(strategy, one_process):
        return list(strategy.extended.worker_devices)
    if isinstance(strategy, tf.distribute.Strategy):
        raise NotSupportedError(
            f"{type(strategy).__name__} is not supported. Use 'allreduce', in one process or "
            "several, or a MirroredStrategy or OneDeviceStrategy, which say which devices."
        )
    raise InvalidInputError(
        "distributed_strategy is 'allreduce', 'parameter_server', or a strategy of tf.distribute; "
        f"received {strategy!r}."
    )


def distributed(
    distribution: Distribution,
) -> AbstractContextManager[None]:
    """Makes Keras create variables and place batches by a distribution until the block ends."""
    raise NotSupportedError(
        f"{type(distribution).__name__} is one of Keras's distributions, which run on JAX; Keras "
        "runs on TensorFlow. Set KERAS_BACKEND=jax, or leave distributed_strategy out."
    )


def count_replicas(model: keras.Model) -> int:
    """Returns how many copies of a model `tf.distribute` keeps, each for part of a batch."""
    return int(model.distribute_strategy.num_replicas_in_sync)


def place_variables(variables: Sequence[keras.Variable]) -> None:
    """Moves variables that were made outside to where the distribution around wants them."""
    # There is none.


def place_batch(batch: Any) -> Any:
    """Returns a batch where the distribution around wants it; as it is, where there is none."""
    return batch
