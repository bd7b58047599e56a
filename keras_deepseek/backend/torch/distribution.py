"""Training on several devices or processes with PyTorch."""

from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.distributed as dist

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.device_shares import DeviceShares
from keras_deepseek.backend.processes.processes import Processes, Replicas
from keras_deepseek.backend.protocols.distribution import Distribution
from keras_deepseek.backend.torch.processes import join_processes
from keras_deepseek.backend.torch.replicas import DeviceReplicas


class TorchDistribution(Distribution):
    """Implements `Distribution` by PyTorch."""

    def replicate_over_devices(self, strategy: Any) -> Replicas | None:
        if isinstance(strategy, list):
            return DeviceReplicas(strategy, DeviceShares(len(strategy)))
        return super().replicate_over_devices(strategy)

    def count_processes(self) -> int:
        return int(dist.get_world_size()) if dist.is_initialized() else 1

    def process_rank(self) -> int:
        return int(dist.get_rank()) if dist.is_initialized() else 0

    def read_whole(self, value: Any) -> Array:
        if not isinstance(value, torch.Tensor):
            return np.asarray(value)
        value = value.detach().cpu().contiguous()
        if value.dtype is torch.bfloat16:  # NumPy knows no other package's dtypes.
            numbers: Array = value.view(torch.int16).numpy()
            return numbers.view(ml_dtypes.bfloat16)
        array: Array = value.numpy()
        return array

    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        return join_processes(
            coordinator, world_size, rank, join_timeout=join_timeout, timeout=timeout
        )
