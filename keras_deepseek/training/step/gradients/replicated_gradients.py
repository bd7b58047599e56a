"""The gradients of a batch whose rows are divided among replicas."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.processes.processes import RemoteReplicas, Replicas
from keras_deepseek.training.step.gradient_update import is_scaled
from keras_deepseek.training.step.gradients.batch_gradients import (
    BatchGradients,
    BatchResult,
    PartGradients,
    SummedGradients,
)
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.micro_batches import Batch, count_rows
from keras_deepseek.training.step.gradients.replica_part import ReplicaPart
from keras_deepseek.training.step.gradients.weighted_sums import MIN_WEIGHT, WeightedSums
from keras_deepseek.training.step.loss.batch_loss import BatchLoss


class DeviceGradients(SummedGradients):
    """Computes gradients with the batch's rows divided among devices of this process."""

    def __init__(
        self, model: keras.Model, part: PartGradients, devices: Replicas, *, is_sum: bool
    ) -> None:
        super().__init__(part, is_sum=is_sum)
        self._model = model
        self._devices = devices

    def sum(self, batch: Batch, variables: Sequence[keras.Variable]) -> tuple[WeightedSums, Any]:
        part = ReplicaPart(self._model, self._part, self._devices, variables)
        scalars, (counts,), gradients = self._devices.sum(part, batch, variables)
        return part.merge(scalars, counts, gradients)[0], 1.0


class ReplicatedGradients(BatchGradients):
    """Sums the gradients of this process's rows with those of all other processes.

    Gradients are sent while the backward pass computes others.
    """

    def __init__(
        self,
        model: keras.Model,
        part: PartGradients,
        replicas: RemoteReplicas,
        loss: BatchLoss,
        residual: GradientResidual | None,
    ) -> None:
        self._model = model
        self._part = part
        self._replicas = replicas
        self._loss = loss
        self._residual = residual

    @property
    def updates_metrics(self) -> bool:
        return self._part.updates_metrics

    def compute(self, batch: Batch, variables: Sequence[keras.Variable]) -> BatchResult:
        num_rows = None
        if self._loss.is_sum:  # Each part then needs the rows of the whole batch.
            num_rows = self._replicas.count(ops.cast(count_rows(batch), "float32"))
        with self._loss.of_batch(num_rows):
            part = ReplicaPart(
                self._model, self._part, self._replicas, variables, self._find_divisor
            )
            scalars, (counts,), gradients, keep = self._reduce(part, batch, variables)
            sums, num_rows = part.merge(scalars, counts, gradients)
        means = replace(sums, gradients=[]).means(is_sum=self._loss.is_sum)
        return BatchResult(means[0], means[1], sums.gradients, num_rows, keep)

    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        return self._part.count_kept_bytes(batch, variables)

    def _find_divisor(self, sums: WeightedSums) -> Any:
        return 1.0 if self._loss.is_sum else ops.maximum(sums.weight, MIN_WEIGHT)

    def _reduce(
        self, part: ReplicaPart, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any], Any]:
        """Sums over all processes; returns the sums, and a function that keeps the residual."""
        optimizer = self._model.optimizer
        scale = optimizer.dynamic_scale if is_scaled(optimizer) else None
        if self._residual is None:
            return *self._replicas.sum(part, batch, variables), None
        compression = self._residual.compression(1.0 if scale is None else scale)
        scalars, counts, gradients, keep = self._replicas.sum_compressed(
            part, batch, variables, compression
        )
        if scale is not None:
            gradients = [gradient * scale for gradient in gradients]
        return scalars, counts, gradients, keep
