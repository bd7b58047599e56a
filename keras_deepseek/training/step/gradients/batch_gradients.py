"""The interface of the classes that compute the gradients of a batch."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.processes.processes import Receive
from keras_deepseek.backend.profiling.step_trace import BACKWARD
from keras_deepseek.training.step.gradients.micro_batches import Batch, count_rows
from keras_deepseek.training.step.gradients.weighted_sums import WeightedSums

Backward = Callable[[Any, Receive | None], list[Any]]
"""A backward pass: from the divisor of the sums, or `None`, to the gradients by variable.

It calls `receive(index, gradient)`, where given, as soon as it knows a gradient.
"""


@dataclass(frozen=True)
class BatchResult:
    """The loss and gradients of a whole batch.

    Args:
        loss: Scalar tensor.
        logs: dict of scalar tensors. Further logs that the trainer's `train_step` returned.
        gradients: list of tensors by variable; `None` where the loss does not depend on it.
        num_rows: The rows of the batch over all processes: integer or scalar tensor.
        keep_residual: Function that keeps the rest that gradient compression left out, for a step
            whose update is made. Defaults to `None`: nothing was compressed.
    """

    loss: Any
    logs: dict[str, Any]
    gradients: list[Any]
    num_rows: Any
    keep_residual: Callable[[], None] | None = None


class BatchGradients(abc.ABC):
    """The base class of objects that compute the gradients of a whole batch."""

    @property
    @abc.abstractmethod
    def updates_metrics(self) -> bool:
        """True if the compiled metrics were updated when the computation was last traced."""

    @abc.abstractmethod
    def compute(self, batch: Batch, variables: Sequence[keras.Variable]) -> BatchResult:
        """Returns the loss, logs and gradients of a whole batch."""

    @abc.abstractmethod
    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        """Returns the bytes that the forward pass keeps for the backward pass."""


class PartGradients(BatchGradients):
    """The base class of objects that compute the gradients of a batch or a part of one."""

    @abc.abstractmethod
    def begin(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Backward]:
        """Runs the forward pass on a part of a batch; returns its sums and its backward pass.

        The backward pass is run later, so that gradients are sent while others are computed.
        """

    @abc.abstractmethod
    def sum(self, batch: Batch, variables: Sequence[keras.Variable]) -> tuple[WeightedSums, Any]:
        """Computes a part of a batch; returns its sums, and a factor for its gradients."""


class SummedGradients(PartGradients):
    """Sums the gradients of parts, and divides them by the weight of the whole batch.

    Args:
        is_sum: True if the loss is a sum over the rows, and not a mean.
    """

    def __init__(self, part: PartGradients, *, is_sum: bool) -> None:
        self._part = part
        self._is_sum = is_sum

    @property
    def updates_metrics(self) -> bool:
        return self._part.updates_metrics

    def compute(self, batch: Batch, variables: Sequence[keras.Variable]) -> BatchResult:
        sums, _ = self.sum(batch, variables)
        with backend.current().step.mark(BACKWARD):
            return BatchResult(*sums.means(is_sum=self._is_sum), count_rows(batch))

    def begin(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Backward]:
        sums, _ = self.sum(batch, variables)

        def backward(divisor: Any, _: Receive | None) -> list[Any]:
            return [None if gradient is None else gradient / divisor for gradient in sums.gradients]

        return replace(sums, gradients=[]), backward

    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        return self._part.count_kept_bytes(batch, variables)
