"""Training on several devices or processes with TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.device_shares import DeviceShares
from keras_deepseek.backend.processes.processes import Processes, Replicas
from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.backend.protocols.distribution import Distribution
from keras_deepseek.backend.tensorflow.processes import join_processes, read_place
from keras_deepseek.backend.tensorflow.replicas import DeviceReplicas
from keras_deepseek.backend.tensorflow.task_cluster import adopt_tasks, connect_tasks, serve_task
from keras_deepseek.errors import InvalidInputError


class TensorFlowDistribution(Distribution):
    """Implements `Distribution` by TensorFlow's collective operations and parameter servers."""

    def replicate_over_devices(self, strategy: Any) -> Replicas | None:
        if isinstance(strategy, list):
            return DeviceReplicas(strategy, DeviceShares(len(strategy)))
        devices = _find_devices(strategy)
        return DeviceReplicas(devices) if len(devices) > 1 else None

    def count_replicas(self, model: keras.Model) -> int:
        return int(model.distribute_strategy.num_replicas_in_sync)

    def count_processes(self) -> int:
        position = read_place()
        return 1 if position is None else position[0]

    def process_rank(self) -> int:
        position = read_place()
        return 0 if position is None else position[1]

    def read_whole(self, value: Any) -> Array:
        tensor = tf.convert_to_tensor(value)
        if "CPU" not in tensor.device:
            return np.array(tensor)
        if tensor.dtype == tf.bfloat16:  # NumPy knows no other package's dtypes.
            return np.from_dlpack(tf.bitcast(tensor, tf.int16)).view(ml_dtypes.bfloat16)
        return np.from_dlpack(tensor)

    def read_strategy(self, strategy: Any) -> tuple[int, int, str] | None:
        is_one = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return read_place() if is_one else None

    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        return join_processes(
            coordinator, world_size, rank, join_timeout=join_timeout, timeout=timeout
        )

    def connect_tasks(
        self, find_addresses: Callable[[], Mapping[str, Sequence[str]]]
    ) -> TaskCluster:
        return connect_tasks(find_addresses)

    def adopt_tasks(self, strategy: Any) -> TaskCluster | None:
        return adopt_tasks(strategy)

    def serve_task(
        self,
        addresses: Mapping[str, Sequence[str]],
        task_type: str,
        index: int,
        on_ready: Callable[[], None],
    ) -> None:
        serve_task(addresses, task_type, index, on_ready)


def _find_devices(strategy: Any) -> list[str]:
    if strategy == "allreduce":
        for kind in ("TPU", "GPU", "CPU"):  # Only TPUs that the script has set up.
            devices = [device.name for device in tf.config.list_logical_devices(kind)]
            if devices:
                return devices
    # A strategy of one process: others have joined before.
    if isinstance(strategy, tf.distribute.Strategy):
        return list(strategy.extended.worker_devices)
    raise InvalidInputError(
        "distributed_strategy must be 'allreduce', 'parameter_server', or a strategy of "
        f"tf.distribute; received {strategy!r}."
    )
