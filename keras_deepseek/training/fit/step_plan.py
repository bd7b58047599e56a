"""The assembly of a training step from the options of a trainer."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.loss_and_metrics import add_metric
from keras_deepseek.backend.keras_private.trainers import overrides_train_step
from keras_deepseek.callbacks.step_metrics import StepMetrics
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.graph.optimized_model import ProgramCall
from keras_deepseek.training.checkpoints.checkpoints import Checkpoints
from keras_deepseek.training.data.position_data import check_data, check_targets
from keras_deepseek.training.fit.fit_callbacks import FiniteCheck
from keras_deepseek.training.fit.guard_callback import GuardCallback
from keras_deepseek.training.fit.tune_malloc import tune_malloc
from keras_deepseek.training.step.compiled_step import CompiledStep
from keras_deepseek.training.step.gradient_clip import check_single_clip
from keras_deepseek.training.step.gradient_update import GradientUpdate, LayerStatistics
from keras_deepseek.training.step.loss.batch_loss import check_test_loss
from keras_deepseek.training.step.loss.compiled_losses import check_reduction
from keras_deepseek.training.step.precision import step_in_precision
from keras_deepseek.training.step.recorded_code import (
    find_evaluation_obstacle,
    find_training_obstacle,
)
from keras_deepseek.training.step.rematerialization import find_blocks
from keras_deepseek.training.step.step_guard import GuardMetric, StepGuard
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.step_profiler import StepProfiler
from keras_deepseek.training.step.training_step import ONE_DEVICE, Parallelism, TrainingStep


class StepPlan:
    """The training step of a trainer, assembled from its options.

    Args:
        compute: The override of `Trainer.train_step`, or `None` for the compiled loss.
        policy: The dtype policy of the step, or `None` for the model's own.
    """

    def __init__(
        self,
        model: keras.Model,
        compute: Callable[..., Any] | None,
        options: StepOptions,
        policy: keras.DTypePolicy | None = None,
        *,
        checkpoints: Checkpoints | None = None,
        parallelism: Parallelism = ONE_DEVICE,
    ) -> None:
        self.options = options
        self.policy = policy
        self.parallelism = parallelism
        self.profiler = StepProfiler(model)
        self.step_metrics = StepMetrics()
        """The metrics of each step, for recorders."""
        self.callbacks: list[keras.callbacks.Callback] = [self.profiler]
        self._model = model
        self._has_compute = compute is not None
        self._program_call = ProgramCall(model) if options.optimize_graph else None
        self._check_options()
        guard_metric = self._make_guard_metric(options.make_guard(), checkpoints)
        statistics = LayerStatistics(model, self.step_metrics, is_by_layer=options.layer_statistics)
        self._training_step = TrainingStep(
            model,
            compute,
            GradientUpdate(
                model, options, guard_metric, parallelism.residual, statistics, parallelism.parts
            ),
            options,
            statistics=statistics,
            guard=guard_metric,
            parallelism=parallelism,
            in_precision=self._in_precision,
            find_obstacle=functools.partial(find_training_obstacle, model, compute),
        )
        self.evaluating: Callable[[], AbstractContextManager[None]] = nullcontext
        """Makes a context manager in which the model may evaluate and predict by recordings."""
        if not parallelism.uses_workers and parallelism.place_layers is None:
            self.evaluating = backend.current().step.recorded_evaluation(
                model, functools.partial(find_evaluation_obstacle, model)
            )
        self.loss = self._training_step.loss
        """The compiled loss, which `Trainer.train_step` computes."""
        self.needs_targets = (
            compute is None
            and not overrides_train_step(model)
            and type(model).compute_loss is keras.Model.compute_loss
            and model.loss is not None
        )
        """True if the only loss is a Keras loss between outputs and targets."""
        if model.built:  # Raises errors of these options now; otherwise the first step does.
            self._in_precision(lambda: find_blocks(model, options.remat))()
        contexts: list[Callable[[], Any]] = [tune_malloc] if options.tune_malloc else []
        if guard_metric is not None:
            contexts.append(functools.partial(add_metric, model, guard_metric))
        if parallelism.parts is not None:
            contexts.append(functools.partial(parallelism.parts.averaging, model))
        self.step = self._compile(contexts)

    def _check_options(self) -> None:
        """Raises an error if an option does not fit the model, or would be ignored."""
        check_single_clip(
            self.options.gradient_clip,
            self._model.optimizer,
            clips_in_workers=self.parallelism.uses_workers,
        )
        if self.options.layer_statistics and self.parallelism.uses_workers:
            raise NotSupportedError(
                "`layer_statistics` needs a step that this process computes; the workers of a "
                "parameter server compute it here. Leave it out."
            )
        if not self._has_compute:
            check_reduction(self._model.loss)
        if overrides_train_step(self._model):
            ignored = {
                **self.options.changes_to_updates(),
                "the trainer's own `train_step`": self._has_compute,
                "other processes": self.parallelism.replicas is not None,
                "`gradient_compression`": self.parallelism.residual is not None,
                "`shard_optimizer`": self.parallelism.parts is not None,
                "several devices": self.parallelism.devices is not None,
            }
            _refuse_own_step(self._model, [name for name, is_asked in ignored.items() if is_asked])

    def _make_guard_metric(
        self, guard: StepGuard | None, checkpoints: Checkpoints | None
    ) -> GuardMetric | None:
        """Adds the callback for bad steps, and returns the guard's metric if there is one."""
        if guard is None:
            self.callbacks.append(FiniteCheck())
            return None
        if guard.action == "roll_back" and checkpoints is None:
            raise InvalidInputError(
                "guard='roll_back' needs checkpoints: name their folder, "
                "Trainer(..., checkpoint_dir=...)."
            )
        guard_metric = GuardMetric(guard, int(self._model.steps_per_execution))
        roll_back = None if checkpoints is None else checkpoints.roll_back
        self.callbacks.append(GuardCallback(guard, guard_metric, roll_back))
        return guard_metric

    def check_test_data(self, x: Any, y: Any) -> None:
        """Raises an error if an evaluation would have no data, no loss or no targets."""
        check_data(x, None, "test data")
        check_test_loss(self._model)
        model_class = type(self._model)
        is_keras_default = (
            model_class.evaluate is keras.Model.evaluate
            and model_class.test_step is keras.Model.test_step
        )
        if is_keras_default and self.needs_targets:
            check_targets(x, y)

    def count_kept_bytes(self, data: Any) -> int:
        """Returns the bytes that a step on a batch keeps for its backward pass."""
        if overrides_train_step(self._model):
            _refuse_own_step(self._model, ["measuring memory"])
        with backend.current().step.fuse_recurrent_layers(self._model):
            return int(self._in_precision(self._training_step.count_kept_bytes)(data))

    def _compile(self, contexts: Sequence[Callable[[], Any]]) -> CompiledStep:
        """Returns the step of the workers, of the trainer, or of the model's own `train_step`."""
        model, parallelism = self._model, self.parallelism
        make_train_step = backend.current().step.make_train_step
        if parallelism.worker_step is not None:  # Workers apply the precision, and hold the layers.
            train_step = make_train_step(model, parallelism.worker_step)
            return CompiledStep(model, train_step, is_eager=True, contexts=contexts)
        prepare: Callable[[], Any] = lambda: None  # noqa: E731
        extra_variables: Callable[[], Sequence[keras.Variable]] = list
        if not overrides_train_step(model):
            prepare, extra_variables = (
                self._training_step.prepare,
                self._training_step.extra_variables,
            )
            train_step = make_train_step(model, self._training_step, extra_variables)
        else:
            train_step = self._in_precision(model.train_step)
            if parallelism.place_layers is not None:
                prepare = functools.partial(parallelism.place_layers, model, is_in_step=False)
        return CompiledStep(
            model,
            train_step,
            self._in_precision(prepare),
            extra_variables,
            is_compilable=parallelism.is_compilable,
            step_metrics=self.step_metrics,
            profiler=self.profiler,
            contexts=contexts,
            parts=parallelism.parts,
        )

    def _in_precision(self, step: Callable[..., Any]) -> Callable[..., Any]:
        if self._program_call is not None:
            step = self._program_call.in_use()(step)
        if self.policy is None:
            return step
        return step_in_precision(self._model, self.policy, step, self.options.float32_layers)


def _refuse_own_step(model: keras.Model, ignored: list[str]) -> None:
    if ignored:
        raise InvalidInputError(
            f"Model {model.name!r} has its own `train_step`, which would ignore "
            f"{' and '.join(ignored)}. Move its code to an override of `Trainer.train_step`."
        )
