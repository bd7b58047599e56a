"""Computes a batch's loss and gradients by one forward and one backward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.gradient_scale import multiply_gradients
from keras_deepseek.backend.keras_private.losses import copy_weights
from keras_deepseek.backend.keras_private.metrics import watch_metric_updates
from keras_deepseek.backend.processes.processes import Receive
from keras_deepseek.backend.profiling.step_trace import BACKWARD
from keras_deepseek.training.step.gradients.batch_gradients import (
    Backward,
    BatchResult,
    PartGradients,
)
from keras_deepseek.training.step.gradients.micro_batches import Batch, count_rows
from keras_deepseek.training.step.gradients.weighted_sums import (
    MIN_WEIGHT,
    WeightedSums,
    make_zero_if_empty,
)
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.loss.label_check import label_checks
from keras_deepseek.training.step.loss.step_result import read_result


class PlainGradients(PartGradients):
    """Computes the gradients of a batch, or of a part of one, by one forward and backward pass.

    Args:
        compute: `Trainer.train_step`: function of `x`, `y` and `sample_weight` that returns the
            loss, or a dict of the loss and further logs.
    """

    def __init__(self, model: keras.Model, compute: Callable[..., Any], loss: BatchLoss) -> None:
        self._model = model
        self._compute = compute
        self._loss = loss
        self._updates_metrics = True

    @property
    def updates_metrics(self) -> bool:
        return self._updates_metrics

    def compute(self, batch: Batch, variables: Sequence[keras.Variable]) -> BatchResult:
        (loss, _, logs), backward = self._differentiate(batch, variables)
        with backend.current().step.mark(BACKWARD):
            gradients = backward()
        return BatchResult(loss, logs, gradients, count_rows(batch))

    def begin(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[WeightedSums, Backward]:
        (loss, weight, logs), differentiate = self._differentiate(batch, variables)
        zero_if_weightless, densify = make_zero_if_empty(weight), backend.current().step.densify

        def prepare(_: int, gradient: Any) -> Any:  # A mean over nothing may be NaN.
            return zero_if_weightless(ops.cast(densify(gradient), "float32"))

        def backward(divisor: Any, receive: Receive | None) -> list[Any]:
            # Divides here: sums are far larger than means, and would overflow in half precision.
            factor = None if divisor is None else weight / divisor
            gradients = [
                None if gradient is None else prepare(index, gradient)
                for index, gradient in enumerate(
                    differentiate(factor, _prepared_receiver(prepare, receive))
                )
            ]
            return multiply_gradients(gradients, weight) if divisor is None else gradients

        return WeightedSums.of(loss, weight, logs), backward

    def sum(self, batch: Batch, variables: Sequence[keras.Variable]) -> tuple[WeightedSums, Any]:
        sums, backward = self.begin(batch, variables)
        with backend.current().step.mark(BACKWARD):
            gradients = backward(ops.maximum(sums.weight, MIN_WEIGHT), None)
        return replace(sums, gradients=gradients), sums.weight

    def count_kept_bytes(self, batch: Batch, variables: Sequence[keras.Variable]) -> int:
        return backend.current().step.count_kept_bytes(
            self._bind(batch), variables, self.assigned(), batch
        )

    def assigned(self) -> list[keras.Variable]:
        """Returns all variables that the forward pass may assign to."""
        model = self._model
        return [
            *model.non_trainable_variables,
            *model.optimizer.variables,
            *model.metrics_variables,
        ]

    def _differentiate(
        self, batch: Batch, variables: Sequence[keras.Variable]
    ) -> tuple[tuple[Any, Any, dict[str, Any]], Callable[..., list[Any]]]:
        return backend.current().step.differentiate(self._bind(batch), variables, self.assigned())

    def _bind(self, batch: Batch) -> Callable[[], tuple[Any, Any]]:
        """Returns a function that computes a batch's scaled loss, and `(loss, weight, logs)`."""

        def compute() -> tuple[Any, Any]:
            x, y, sample_weight = batch
            with (
                watch_metric_updates(self._model) as updates,
                label_checks(self._model),
                self._loss.of_part(count_rows(batch)),
            ):
                result = self._compute(x, y, copy_weights(sample_weight))
            loss, weight, logs = read_result(result)
            self._updates_metrics = bool(updates)
            if self._loss.is_in_parts:
                weight = 1.0 if weight is None or self._loss.is_sum else weight
                weight = ops.cast(weight, "float32")
            scaled = self._model.optimizer.scale_loss(loss)
            return scaled, (ops.stop_gradient(loss), weight, logs)

        return compute


def _prepared_receiver(
    prepare: Callable[[int, Any], Any], receive: Receive | None
) -> Receive | None:
    """Wraps `receive`, so that it gets each gradient after `prepare` has changed it."""
    if receive is None:
        return None
    return lambda index, gradient: receive(index, prepare(index, gradient))
