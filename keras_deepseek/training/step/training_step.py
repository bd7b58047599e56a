"""The training step, in the same order on every backend.

The order: gradients, unscaling, finite check, clipping, update, metrics. `Trainer` replaces the
model's own `train_step` by it while `fit` runs.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.losses import track_loss
from keras_deepseek.backend.keras_private.metrics import compiled_metric_names
from keras_deepseek.backend.keras_private.trainers import build_for_training
from keras_deepseek.backend.profiling.step_trace import LOSS
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.accumulated_gradients import AccumulatedGradients
from keras_deepseek.training.step.gradients.batch_gradients import (
    BatchGradients,
    BatchResult,
    PartGradients,
)
from keras_deepseek.training.step.gradients.micro_batches import count_rows
from keras_deepseek.training.step.gradients.plain_gradients import PlainGradients
from keras_deepseek.training.step.gradients.replicated_gradients import (
    DeviceGradients,
    ReplicatedGradients,
)
from keras_deepseek.training.step.guard_metric import GuardMetric
from keras_deepseek.training.step.layer_statistics import LayerStatistics
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.loss.step_result import check_log_names
from keras_deepseek.training.step.parallelism import ONE_DEVICE, Parallelism
from keras_deepseek.training.step.rematerialization import (
    find_blocks,
    find_normalizations,
    rematerialized,
)
from keras_deepseek.training.step.step_options import StepOptions

_logger = logging.getLogger(__name__)


class Update(Protocol):
    """The interface of objects that update variables by the gradients of a step."""

    def __call__(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        keep_residual: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Updates the variables, and then calls `keep_residual`.

        Returns:
            Boolean scalar, true for a good step, or `None` if steps are not checked; and the logs.
        """


class TrainingStep:
    """Trains a model on one batch and returns the logs.

    Args:
        compute: `Trainer.train_step`: function of `x`, `y` and `sample_weight` that returns the
            loss, or a dict of the loss and further logs.
        on_built: Function that is called after the first step has built the model or the
            optimizer. Defaults to a function that does nothing.
    """

    def __init__(
        self,
        model: keras.Model,
        compute: Callable[..., Any],
        update: Update,
        options: StepOptions,
        *,
        guard: GuardMetric | None = None,
        parallelism: Parallelism = ONE_DEVICE,
        on_built: Callable[[], None] = lambda: None,
        statistics: LayerStatistics | None = None,
    ) -> None:
        is_in_parts = options.micro_batches > 1 or parallelism.divides_batches
        self.loss = BatchLoss(model, is_in_parts=is_in_parts)
        """The compiled loss, which `compute` may call."""
        self._model = model
        self._gradients = _make_gradients(
            model, compute, self.loss, options.micro_batches, parallelism
        )
        self._update = update
        self._options = options
        self._guard = guard
        self._residual = parallelism.residual
        self._takes_empty = parallelism.replicas is not None  # Other processes may have rows.
        self._on_built = on_built
        self._statistics = statistics
        self._blocks: list[keras.Layer] | None = None
        self._has_warned = False

    def __call__(self, data: Any) -> dict[str, Any]:
        """Runs the training step on a batch, and returns its logs."""
        batch = keras.utils.unpack_x_y_sample_weight(data)
        num_rows = count_rows(batch)
        if isinstance(num_rows, int) and num_rows == 0 and not self._takes_empty:
            raise InvalidInputError("Received a batch without rows, which can't be trained on.")
        self._build(data)
        variables = self._model.trainable_variables
        states = self._guard.copy_states(self._model) if self._guard else []
        with rematerialized(self.find_blocks()), self.loss.of_batch(num_rows):
            result = self._gradients.compute(batch, variables)
        loss = result.loss
        if not isinstance(result.num_rows, int):
            loss = ops.where(result.num_rows > 0, loss, float("nan"))
        statistics = self._statistics if self._statistics and self._statistics.are_wanted else None
        if statistics is not None:
            statistics.begin(batch[0])
        is_good, update_logs = self._apply(loss, result, variables)
        with backend.current().step.mark(LOSS):
            track_loss(self._model, loss, result.num_rows)
        for state, old_value in states:
            state.assign(ops.where(is_good, state.value, old_value))
        with backend.current().step.mark(LOSS):
            means = self._read_logs()
        check_log_names(result.logs, {**means, **update_logs})
        step_metrics = {} if statistics is None else statistics.finish(loss)
        return {**means, **result.logs, **update_logs, **step_metrics}

    def count_kept_bytes(self, data: Any) -> int:
        """Returns the bytes that a step on a batch keeps for its backward pass."""
        batch = keras.utils.unpack_x_y_sample_weight(data)
        with rematerialized(self.find_blocks()), self.loss.of_batch(count_rows(batch)):
            return self._gradients.count_kept_bytes(batch, self._model.trainable_variables)

    def prepare(self) -> None:
        """Finds the layers to rematerialize and creates the residual, before the first step."""
        self.find_blocks()
        if self._residual is not None:
            self._residual.prepare(self._model.trainable_variables)

    def extra_variables(self) -> list[keras.Variable]:
        """Returns the variables that a step assigns, but that Keras does not pass to it."""
        return [] if self._residual is None else self._residual.variables

    def find_blocks(self) -> list[keras.Layer]:
        """Returns the layers of a built model that are rematerialized in the step."""
        if self._blocks is None:
            self._blocks = find_blocks(self._model, self._options.remat)
            if not self._options.optimize_graph:  # Programs can't be rewritten through them.
                self._blocks += find_normalizations(self._model, self._blocks)
        return self._blocks

    def _build(self, data: Any) -> None:
        """Builds the model and its optimizer before the first step, unless they are built."""
        if not (self._model.built and self._model.optimizer.built):
            build_for_training(self._model, data)
            self._on_built()

    def _apply(
        self, loss: Any, result: BatchResult, variables: Sequence[keras.Variable]
    ) -> tuple[Any, dict[str, Any]]:
        """Applies the gradients to the variables that the loss depends on."""
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(result.gradients, variables, strict=True)
            if gradient is not None
        ]
        if variables and not pairs:
            raise InvalidInputError(
                f"The loss does not depend on any trainable weight of {self._model.name!r}, so "
                "that there is nothing to train."
            )
        return self._update(
            loss,
            [gradient for gradient, _ in pairs],
            [variable for _, variable in pairs],
            result.keep_residual,
        )

    def _read_logs(self) -> dict[str, Any]:
        """Returns the means of the loss and metrics since the epoch began, as logs."""
        means = self._model.get_metrics_result()
        if not self._gradients.updates_metrics:
            means = self._without_metrics(means)
        return means if self._guard is None else self._guard.hide_empty_means(means)

    def _without_metrics(self, means: dict[str, Any]) -> dict[str, Any]:
        """Removes the compiled metrics from logs, since they are 0 if `train_step` skips them."""
        skipped = compiled_metric_names(self._model)
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "`train_step` does not update the metrics of %r, and %s are not logged in "
                "training. Call self.model.compute_metrics(x, y, outputs, sample_weight) in it.",
                self._model.name,
                ", ".join(skipped),
            )
        return {name: value for name, value in means.items() if name not in skipped}


def _make_gradients(
    model: keras.Model,
    compute: Callable[..., Any],
    loss: BatchLoss,
    micro_batches: int,
    parallelism: Parallelism,
) -> BatchGradients:
    """Returns the object that computes the gradients of a batch.

    A batch is divided among processes, each part into micro-batches, and each of these among the
    devices of the process.
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
