"""Measurements of a training step: the memory that it needs, and its profile."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.tensor_values import count_bytes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.fit.error_notes import missing_loss_errors
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.step.step_profiler import STEPS, StepProfile, StepProfiler
from keras_deepseek.training.tuning.short_training import ShortTraining


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """The bytes that a training step needs, by their use. Printed, it is a table.

    The bytes are counted from shapes and dtypes, alike on any device. A framework needs more, which
    is not counted: the inputs and outputs of the operation that is running, the batch itself, and
    the memory that its allocator keeps. XLA may need less, where it computes a tensor again instead
    of keeping it.

    Args:
        weights: integer. Bytes of the layers' variables: weights, moving statistics, seeds.
        gradients: integer. Bytes of the gradients, and with micro-batches of their sum.
        optimizer: integer. Bytes of the optimizer's variables, such as momenta and moving averages.
        activations: integer. Bytes that the forward pass of a batch, or of one micro-batch, keeps
            for the backward pass: outputs of layers, masks of dropout, weights that were cast to
            half precision. Of a loop whose number of rounds depends on the data, TensorFlow counts
            one round.
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
        """The sum of the four parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        """Returns a table of the parts in MiB, or KiB if the model is small, and in percent."""
        unit, name_of_unit = (2**20, "MiB") if self.total >= 2**20 else (2**10, "KiB")
        names = ("weights", "gradients", "optimizer", "activations", "total")
        rows = []
        for name in names:
            size = getattr(self, name)
            share = size / max(self.total, 1)
            rows.append(f"{name:12}{size / unit:12,.1f} {name_of_unit}{share:7.0%}")
        rows[names.index("activations")] += f"   of a batch of {self.batch_size}"
        return "\n".join(rows)


def measure_memory(
    model: keras.Model, plan: StepPlan, training: ShortTraining, data: dict[str, Any]
) -> MemoryReport:
    """Counts the bytes that a step on the first batch needs, and restores the model."""
    with training.restored_state():
        batch = training.first_batch(**data)
        with missing_loss_errors(model):
            activations = plan.count_kept_bytes(batch)
        trainable = model.trainable_variables
        gradients = count_bytes(trainable)
        if plan.options.micro_batches > 1:  # Their sum is in float32.
            num_bytes = np.dtype("float32").itemsize
            gradients += sum(num_bytes * int(np.prod(variable.shape)) for variable in trainable)
        return MemoryReport(
            weights=count_bytes(model.variables),
            gradients=gradients,
            optimizer=count_bytes(model.optimizer.variables),
            activations=activations,
            batch_size=int(keras.tree.flatten(batch)[0].shape[0]),
        )


_WARM_UP = 2  # The first step compiles, and the second may allocate.


def profile_steps(
    profiler: StepProfiler, training: ShortTraining, trace_file: Path, data: dict[str, Any]
) -> StepProfile:
    """Profiles steps on data, and restores the model; see `Trainer.profile`."""
    results: list[StepProfile | Exception] = []
    with training.restored_state():
        profiler.request(trace_file, results.append, skip=_WARM_UP)
        training.fit(_WARM_UP + STEPS, [profiler], **data)
    if not results:
        raise InvalidInputError(
            f"The data ended before {_WARM_UP + STEPS} batches, which a profile needs. Use a "
            "generator that goes on."
        )
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result
