"""The training step, in the same order on every backend.

The order: gradients, unscaling, finite check, clipping, update, metrics. `Trainer` replaces the
model's own `train_step` by it while `fit` runs.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.loss_and_metrics import compiled_metric_names, track_loss
from keras_deepseek.backend.keras_private.trainers import (
    build_for_training,
    class_overrides_train_step,
    finish_building,
    runs_as_written,
)
from keras_deepseek.backend.processes.processes import RemoteReplicas, Replicas
from keras_deepseek.backend.profiling.step_trace import BACKWARD, LOSS
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradient_update import LayerStatistics
from keras_deepseek.training.step.gradients.batch_part import (
    BatchPart,
    Part,
    PartFunction,
    check_log_names,
)
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.micro_batches import MicroBatches, sum_micro_batches
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts
from keras_deepseek.training.step.gradients.replicas import sum_devices, sum_processes
from keras_deepseek.training.step.gradients.weighted_sums import WeightedSums
from keras_deepseek.training.step.loss.batch_loss import Batch, BatchLoss, count_rows
from keras_deepseek.training.step.rematerialization import (
    find_blocks,
    find_normalizations,
    rematerialized,
)
from keras_deepseek.training.step.step_guard import GuardMetric
from keras_deepseek.training.step.step_options import StepOptions

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parallelism:
    """The processes, devices and workers that compute each training step together.

    Args:
        replicas: `RemoteReplicas`, one in each process, that divide the rows of a batch.
        residual: `GradientResidual` if gradients are compressed between processes.
        parts: `OptimizerParts` if each process updates its part of the weights.
        share: Function that makes the weights whole in all processes, after an update of parts.
        devices: `Replicas` on devices of this process that divide the rows of a batch.
        place_layers: Function of the model that moves its layers to their devices, if these divide
            the model. It takes `is_in_step`, true within the first step.
        worker_step: Function of a batch that has it computed by a worker of a parameter server, and
            returns logs.
        run_workers: Function of the arguments of `model.fit` that returns a context manager in
            which these workers run.
    """

    replicas: RemoteReplicas | None = None
    residual: GradientResidual | None = None
    parts: OptimizerParts | None = None
    share: Callable[[], None] | None = None
    devices: Replicas | None = None
    place_layers: Callable[..., None] | None = None
    worker_step: Callable[[Any], dict[str, Any]] | None = None
    run_workers: Callable[[dict[str, Any]], AbstractContextManager[None]] | None = None

    @property
    def divides_batches(self) -> bool:
        """True if processes or devices divide the rows of each batch."""
        return self.replicas is not None or self.devices is not None

    @property
    def uses_workers(self) -> bool:
        """True if the workers of a parameter server compute the steps."""
        return self.worker_step is not None

    @property
    def is_compilable(self) -> bool:
        """True if XLA can compile the step. XLA would put the layers of several devices on one."""
        replicas = (self.replicas, self.devices)
        return self.place_layers is None and all(
            replica_set is None or replica_set.is_compilable for replica_set in replicas
        )


ONE_DEVICE = Parallelism()
"""The parallelism of a step that one device of one process computes alone."""


class Update(Protocol):
    """The interface of objects that update variables by the gradients of a step."""

    def __call__(
        self,
        loss: Any,
        gradients: list[Any],
        variables: Sequence[keras.Variable],
        finish_update: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Updates the variables, and then calls `finish_update`.

        Returns:
            Boolean scalar, true for a good step, or `None` if steps are not checked; and the logs.
        """


class TrainingStep:
    """Trains a model on one batch and returns the logs.

    Args:
        compute: Override of `Trainer.train_step`: function of `x`, `y` and `sample_weight` that
            returns the loss, or a dict of the loss and further logs. `None`: the compiled loss.
        in_precision: Function that makes a function compute in the precision of the step.
        find_obstacle: Function that returns a reason why the step can't be recorded. Defaults to
            `None`: it is never recorded.
    """

    def __init__(
        self,
        model: keras.Model,
        compute: Callable[..., Any] | None,
        update: Update,
        options: StepOptions,
        *,
        guard: GuardMetric | None = None,
        parallelism: Parallelism = ONE_DEVICE,
        statistics: LayerStatistics | None = None,
        in_precision: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda step: step,
        find_obstacle: Callable[[], str | None] | None = None,
    ) -> None:
        is_in_parts = options.micro_batches > 1 or parallelism.divides_batches
        self.loss = BatchLoss(model, is_in_parts=is_in_parts)
        """The compiled loss, which an override may call by `super().train_step`."""
        self._model = model
        self._batch_part = BatchPart(model, compute or self.loss, self.loss)
        self._find_obstacle = find_obstacle
        self._compute_part = self._divide(self._batch_part, options.micro_batches, parallelism)
        self._update = update
        self._options = options
        self._guard = guard
        self._parallelism = parallelism
        self._statistics = statistics
        self._blocks: list[keras.Layer] | None = None
        self._has_warned = False
        self._compute_eagerly = in_precision(self._compute_batch)
        self._compute = self._compute_eagerly
        if find_obstacle is not None and parallelism == ONE_DEVICE:
            make_recorded = backend.current().step.make_recorded
            self._compute = make_recorded(self._compute_eagerly, model, find_obstacle)

    def __call__(self, data: Any) -> dict[str, Any]:
        """Runs the training step on a batch, and returns its logs."""
        batch = keras.utils.unpack_x_y_sample_weight(data)
        num_rows = count_rows(batch)
        # Other processes may have rows.
        if isinstance(num_rows, int) and num_rows == 0 and self._parallelism.replicas is None:
            raise InvalidInputError("Received a batch without rows, which can't be trained on.")
        self._build(data)
        states = self._guard.copy_states(self._model) if self._guard else []
        is_eager = runs_as_written(self._model)
        compute = self._compute_eagerly if is_eager else self._compute
        loss, logs, gradients, variables, num_rows, finish_update, means = compute(batch)
        is_measured = self._statistics is not None and self._statistics.step_metrics.are_wanted
        statistics = self._statistics if is_measured else None
        if statistics is not None:
            statistics.begin(batch[0])
        is_good, update_logs = self._apply(loss, gradients, variables, finish_update)
        if means is None:
            means = self._track(loss, num_rows, states, is_good)
        check_log_names(logs, {**means, **update_logs})
        step_metrics = {} if statistics is None else statistics.finish(loss)
        return {**means, **logs, **update_logs, **step_metrics}

    def _compute_batch(self, batch: Batch) -> tuple[Any, ...]:
        """Computes a batch, up to its gradients.

        Returns:
            The loss, the logs, the gradients and their variables, the number of rows and
            `finish_update`. And the means of loss and metrics, or `None` if a guard may yet undo
            their change.
        """
        num_rows = count_rows(batch)
        variables = self._model.trainable_variables
        with rematerialized(self.find_blocks()), self.loss.of_batch(num_rows):
            part = self._compute_part(batch, variables)
            with backend.current().step.mark(BACKWARD):
                loss, logs, gradients = part.means(is_sum=self.loss.is_sum)
        if not isinstance(part.num_rows, int):  # Perhaps no process has a row.
            loss = ops.where(part.num_rows > 0, loss, float("nan"))
        means = None if self._guard else self._track(loss, part.num_rows)
        finish_update = self._parallelism.share or part.keep_residual
        if self._parallelism.parts is not None:
            variables = self._parallelism.parts.variables
        return loss, logs, gradients, variables, part.num_rows, finish_update, means

    def _track(
        self,
        loss: Any,
        num_rows: Any,
        states: Sequence[tuple[keras.Variable, Any]] = (),
        is_good: Any = None,
    ) -> dict[str, Any]:
        """Adds the loss to its mean, and returns the means of loss and metrics, as logs."""
        with backend.current().step.mark(LOSS):
            track_loss(self._model, loss, num_rows)
        for state, old_value in states:  # A bad batch must not change metrics and layers.
            state.assign(ops.where(is_good, state.value, old_value))
        with backend.current().step.mark(LOSS):
            return self._read_logs()

    def count_kept_bytes(self, data: Any) -> int:
        """Returns the bytes that a step on a batch, or on a micro-batch, keeps for `backward`."""
        batch = keras.utils.unpack_x_y_sample_weight(data)
        num_rows = count_rows(batch)
        if self._options.micro_batches > 1:
            batch = MicroBatches(batch, self._options.micro_batches).take(0)
        with rematerialized(self.find_blocks()), self.loss.of_batch(num_rows):
            return self._batch_part.count_kept_bytes(batch, self._model.trainable_variables)

    def prepare(self) -> None:
        """Places and finds layers, and creates the residual, before the first step."""
        if self._parallelism.place_layers is not None:
            self._parallelism.place_layers(self._model, is_in_step=False)
        self.find_blocks()
        if self._parallelism.residual is not None:
            self._parallelism.residual.prepare(self._model.trainable_variables)

    def extra_variables(self) -> list[keras.Variable]:
        """Returns the variables that a step assigns, but that Keras does not pass to it."""
        residual = self._parallelism.residual
        return [] if residual is None else residual.variables

    def find_blocks(self) -> list[keras.Layer]:
        """Returns the layers of a built model that are rematerialized in the step."""
        if self._blocks is None:
            self._blocks = find_blocks(self._model, self._options.remat)
            if not self._options.optimize_graph:  # Programs can't be rewritten through them.
                self._blocks += find_normalizations(self._model, self._blocks)
        return self._blocks

    def _build(self, data: Any) -> None:
        if not (self._model.built and self._model.optimizer.built):
            build_for_training(self._model, data)
            if self._parallelism.place_layers is not None:
                self._parallelism.place_layers(self._model, is_in_step=True)

    def _apply(
        self,
        loss: Any,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        finish_update: Callable[[], None] | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Applies the gradients to the variables that the loss depends on."""
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(gradients, variables, strict=True)
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
            finish_update,
        )

    def _read_logs(self) -> dict[str, Any]:
        """Returns the means of the loss and metrics since the epoch began, as logs."""
        means = self._model.get_metrics_result()
        if not self._batch_part.updates_metrics:
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

    def _divide(
        self, part: BatchPart, micro_batches: int, parallelism: Parallelism
    ) -> PartFunction:
        """Returns the computation of a whole batch from that of its parts.

        A batch is divided among processes, each part into micro-batches, and each of these among
        the devices of the process.
        """
        model = self._model
        compute: PartFunction = part.__call__
        if parallelism.devices is not None:
            compute = functools.partial(sum_devices, compute, model, parallelism.devices)
        if micro_batches > 1:
            compute = functools.partial(sum_micro_batches, compute, micro_batches, part.assigned)
        if parallelism.replicas is not None:
            replicas, residual = parallelism.replicas, parallelism.residual
            if parallelism.devices is None and parallelism.place_layers is None:
                compute = self._record(compute)
            compute = functools.partial(
                sum_processes, compute, model, replicas, self.loss, residual, parallelism.parts
            )
        return compute

    def _record(self, compute: PartFunction) -> PartFunction:
        """Returns the computation of a process's rows by a recording, where that is possible.

        What processes send to each other is outside of it.
        """
        if self._find_obstacle is None:
            return compute

        def start(batch: Batch) -> Any:
            part = compute(batch, self._model.trainable_variables)
            sums = part.sums
            return (sums.weight, sums.loss, sums.logs, part.factor), part.backward

        make_recorded = backend.current().step.make_recorded_parts
        recorded = make_recorded(start, self._model, self._find_obstacle)

        def run(batch: Batch, variables: Sequence[keras.Variable]) -> Part:
            # A sum needs the rows of all processes.
            if runs_as_written(self._model) or self.loss.is_sum or self.find_blocks():
                return compute(batch, variables)
            (weight, loss, logs, factor), backward = recorded(batch)
            return Part(WeightedSums(weight, loss, logs, []), count_rows(batch), backward, factor)

        return run


def build_for_step(model: keras.Model, batch: Any) -> None:
    """Creates the variables of a compiled model, its metrics and its optimizers.

    A model with its own `train_step` may not be callable on a batch, for example if that step
    splits the batch first. Then the step itself is traced. PyTorch can't trace it, so that the
    layers of such a model must be built before.

    `batch` is a structure of `KerasTensor`s and `None`.
    """
    try:
        build_for_training(model, batch)
    except Exception:
        if not class_overrides_train_step(model):
            raise
        finish_building(model)  # The step may need a built optimizer.
        backend.current().step.build_by_step(model, batch)
        if not finish_building(model):
            raise
