"""Chooses the classes that compute the gradients of a trainer's steps."""

from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.training.step.gradients.accumulated_gradients import AccumulatedGradients
from keras_deepseek.training.step.gradients.batch_gradients import BatchGradients, PartGradients
from keras_deepseek.training.step.gradients.plain_gradients import PlainGradients
from keras_deepseek.training.step.gradients.replicated_gradients import (
    DeviceGradients,
    ReplicatedGradients,
)
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.parallelism import Parallelism


def make_gradients(
    model: keras.Model,
    compute: Callable[..., Any],
    loss: BatchLoss,
    micro_batches: int,
    parallelism: Parallelism,
) -> BatchGradients:
    """Returns the object that computes the gradients of a batch.

    A batch is divided among processes, each part into micro-batches, and each of these among the
    devices of the process.

    Args:
        model: `keras.Model`, compiled.
        compute: `Trainer.train_step`: function of `x`, `y` and `sample_weight` that returns the
            loss, or a dict of the loss and further logs.
        loss: `BatchLoss` of the model.
        micro_batches: integer. The number of parts for gradient accumulation.
        parallelism: `Parallelism` of the step.
    """
    plain = PlainGradients(model, compute, loss)
    part: PartGradients = plain
    if parallelism.devices is not None:
        part = DeviceGradients(model, part, parallelism.devices, is_sum=loss.is_sum)
    if micro_batches > 1:
        part = AccumulatedGradients(part, micro_batches, plain.assigned, is_sum=loss.is_sum)
    if parallelism.replicas is None:
        return part
    return ReplicatedGradients(model, part, parallelism.replicas, loss, parallelism.residual)
