"""The interface of the ways to compute a batch's gradients."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_deepseek.backend.processes.processes import Receive
from keras_deepseek.training.step.gradients.micro_batches import Batch
from keras_deepseek.training.step.gradients.weighted_sums import WeightedSums

Backward = Callable[[Any, Receive | None], list[Any]]
"""A backward pass. It takes the divisor of the sums, or `None`, and returns gradients by variable.

If `receive` is given, it calls `receive(index, gradient)` as soon as it knows a gradient.
"""


@dataclass(frozen=True)
class BatchResult:
    """The loss and gradients of a whole batch.

    Args:
        loss: Scalar tensor.
        logs: dict of scalar tensors. Further logs that the trainer's `train_step` returned.
        gradients: list of tensors by variable; `None` if the loss does not depend on the variable.
        num_rows: integer or scalar tensor. The rows of the batch over all processes.
        keep_residual: Function that stores the residual of gradient compression. It is called only
            if the update is applied. Defaults to `None`: nothing was compressed.
    """

    loss: Any
    logs: dict[str, Any]
    gradients: list[Any]
    num_rows: Any
    keep_residual: Callable[[], None] | None = None


class BatchGradients(abc.ABC):
    """Computes the gradients of a batch."""

    @property
    @abc.abstractmethod
    def updates_metrics(self) -> bool:
        """True if the computation updated the compiled metrics when it was last traced."""

    @abc.abstractmethod
    def compute(self, batch: Batch, variables: Sequence[keras.Variable]) -> BatchResult:
        """Returns the loss, logs and gradients of a whole batch."""

    @abc.abstractmethod
    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        """Returns the bytes that the forward pass keeps for the backward pass."""


class PartGradients(BatchGradients):
    """Computes the gradients of a batch, or of a part of one."""

    @abc.abstractmethod
    def begin(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Backward]:
        """Returns the sums of a part of a batch without gradients, and its backward pass.

        The backward pass is run later, so that gradients are sent while others are computed.
        """

    @abc.abstractmethod
    def sum(self, batch: Batch, variables: Sequence[keras.Variable]) -> tuple[WeightedSums, Any]:
        """Returns the sums of a part of a batch, and a factor to multiply its gradients with."""


def begin_from_sums(sums: WeightedSums) -> tuple[WeightedSums, Backward]:
    """Returns a result for `PartGradients.begin` from sums that have gradients already."""

    def backward(divisor: Any, _: Receive | None) -> list[Any]:
        return [None if gradient is None else gradient / divisor for gradient in sums.gradients]

    return replace(sums, gradients=[]), backward
