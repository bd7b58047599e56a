"""What a step of training holds in memory, by what it is for."""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.host_values import count_bytes
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.step.loss.missing_loss import missing_loss_errors
from keras_deepseek.training.tuning.short_training import ShortTraining


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """The bytes that a training holds, by what they are for; printed, a table.

    They are counted, on any device. What a framework needs beyond them is not there: room for the
    inputs and outputs of one operation at a time, the batch itself, and what its allocator keeps.
    XLA may hold less, where it computes a number anew in place of keeping it.

    Args:
        weights: integer. Variables of the layers, in bytes: weights, moving statistics, seeds.
        gradients: integer. Those by the trainable weights, and, with micro-batches, their sum.
        optimizer: integer. Variables of the optimizer, such as momenta and moving averages.
        activations: integer. What the forward pass of a batch, or of one of its micro-batches,
            keeps for the backward pass: outputs of layers, masks of dropout, weights that were cast
            to half precision. Of a loop whose number of rounds depends on the data, TensorFlow
            counts one.
        batch_size: integer. The rows of that batch.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import Trainer
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
    >>> report = trainer.measure_memory(np.ones((64, 4)), np.ones((64, 1)))
    >>> report.weights, report.gradients, report.batch_size
    (20, 20, 32)
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    batch_size: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        """Returns a table of the parts, in MiB, or in KiB of a small model, and in percent."""
        unit, name_of_unit = (2**20, "MiB") if self.total >= 2**20 else (2**10, "KiB")
        names = ("weights", "gradients", "optimizer", "activations", "total")
        rows = []
        for name in names:
            size = getattr(self, name)
            share = size / max(self.total, 1)
            rows.append(f"{name:12}{size / unit:12,.1f} {name_of_unit}{share:7.0%}")
        rows[3] += f"   of a batch of {self.batch_size}"
        return "\n".join(rows)


def measure_memory(
    model: keras.Model,
    plan: StepPlan,
    training: ShortTraining,
    data: dict[str, Any],
) -> MemoryReport:
    """Counts what a step on the first batch holds, and puts everything back.

    Args:
        model: `keras.Model`, compiled.
        plan: `StepPlan` of its steps.
        training: `ShortTraining` of the model.
        data: dict. The data and the other arguments of `ShortTraining.first_batch`.
    """
    with training.leaving_no_trace():
        batch = training.first_batch(**data)
        with missing_loss_errors(model):
            activations = plan.count_kept_bytes(batch)
        trainable = model.trainable_variables
        gradients = count_bytes(trainable)
        if plan.options.micro_batches > 1:  # They are summed in float32.
            gradients += sum(4 * int(np.prod(variable.shape)) for variable in trainable)
        return MemoryReport(
            weights=count_bytes(model.variables),
            gradients=gradients,
            optimizer=count_bytes(model.optimizer.variables),
            activations=activations,
            batch_size=int(keras.tree.flatten(batch)[0].shape[0]),
        )
