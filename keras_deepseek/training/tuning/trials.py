"""What a trainer finds out before it trains: a learning rate, a batch size, the memory of a step.

`Trainer` is such a class; each of these is a short training of its own, which leaves no trace.
"""

import abc
from contextlib import AbstractContextManager
from typing import Any

import keras

from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.cluster.cluster_spec import ClusterSpec
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.tuning.batch_size_search import BatchSizeSearch, search_batch_size
from keras_deepseek.training.tuning.learning_rate_search import (
    LearningRateSearch,
    search_learning_rate,
)
from keras_deepseek.training.tuning.memory_report import MemoryReport, measure_memory
from keras_deepseek.training.tuning.short_training import ShortTraining


class Trials(abc.ABC):
    """The short trainings of a trainer.

    Who inherits has the `model`, its `cluster`, and the `_plan` of its steps.
    """

    model: keras.Model
    cluster: ClusterSpec
    _plan: StepPlan

    @abc.abstractmethod
    def _in_training(self) -> AbstractContextManager[None]:
        """Returns a context in which the model trains as the trainer wants it to."""

    def _short_training(self) -> ShortTraining:
        if self._plan.is_served:
            raise NotSupportedError(
                "Workers of a parameter server make no steps that leave no trace. Try them by a "
                "Trainer without a distributed_strategy."
            )
        if self.cluster.world_size > 1:
            raise NotSupportedError(
                f"One of {self.cluster.world_size} processes can't try steps of its own. Do so in "
                "a process that trains alone."
            )
        return ShortTraining(self.model, self._in_training)

    def find_learning_rate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        lowest: float = 1e-7,
        highest: float = 10.0,
        num_steps: int = 100,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> LearningRateSearch:
        """Returns which learning rate to train with, by a short training whose rate grows.

        It ends early when the loss explodes, calls no callbacks, and leaves no trace: weights,
        optimizer, metrics and random numbers are what they were. A generator moves on.

        Args:
            x: Training data, as `fit` takes them. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch: those of the training that is to come. Defaults to
                `None`: 32.
            lowest: float. The rate of the first step. Defaults to `1e-7`.
            highest: float. The rate of the last step. Defaults to `10.0`.
            num_steps: integer. The number of steps. Defaults to `100`.
            sample_weight: Weights of the samples, beside arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: A number does not fit, the optimizer has a schedule, or the model's
                `steps_per_execution` is not 1.
        """
        return search_learning_rate(
            self.model,
            self._short_training(),
            lowest=lowest,
            highest=highest,
            num_steps=num_steps,
            x=x,
            y=y,
            batch_size=batch_size,
            sample_weight=sample_weight,
            class_weight=class_weight,
        )

    def find_batch_size(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        start: int = 8,
        most: int | None = None,
    ) -> BatchSizeSearch:
        """Returns which batch size to train with, by timing steps of growing sizes.

        The size is doubled until memory runs out, and then narrowed down, or until twice the size
        brings less than 5 % more samples a second. It calls no callbacks and leaves no trace, as
        `find_learning_rate`.

        Args:
            x: Arrays, whose rows are repeated where there are too few; or a function from a batch
                size to a `PyDataset`, or to a tuple of arrays, of that size.
            y: Targets, beside arrays. Defaults to `None`.
            sample_weight: Weights of the samples, beside arrays. Defaults to `None`.
            start: integer. The first size. Defaults to `8`.
            most: integer. The largest size. Defaults to `None`: the number of rows of arrays, and
                no limit where `x` is a function.

        Raises:
            InvalidInputError: The data are of one batch size, a number does not fit, or the model's
                `steps_per_execution` is not 1.
        """
        return search_batch_size(
            self._short_training(), x, y, sample_weight, start=start, most=most
        )

    def measure_memory(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> MemoryReport:
        """Returns the bytes that a step holds: of weights, gradients, optimizer and activations.

        They are counted for the first batch, with the trainer's precision, micro-batches and
        `remat`, and no step is made. It leaves no trace, as `find_learning_rate`.

        Args:
            x: Training data, as `fit` takes them. Defaults to `None`.
            y: Targets, where `x` does not hold them. Defaults to `None`.
            batch_size: integer. Rows of a batch, where `x` does not come in batches. Defaults to
                `None`: 32.
            sample_weight: Weights of the samples, beside arrays. Defaults to `None`.
            class_weight: dict. Weights by class. Defaults to `None`.

        Raises:
            InvalidInputError: There is no batch, the model has no loss, or it has a `train_step` of
                its own.
        """
        data = {
            "x": x,
            "y": y,
            "batch_size": batch_size,
            "sample_weight": sample_weight,
            "class_weight": class_weight,
        }
        return measure_memory(self.model, self._plan, self._short_training(), data)
