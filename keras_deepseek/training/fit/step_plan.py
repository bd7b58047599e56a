"""The assembly of a training step from the options of a trainer."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.metrics import add_metric
from keras_deepseek.backend.keras_private.optimizers import optimized_variables
from keras_deepseek.backend.keras_private.trainers import compilation, overrides_train_step
from keras_deepseek.callbacks.step_metrics import StepMetrics
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.graph.optimized_model import ProgramCall
from keras_deepseek.training.checkpoints.checkpoints import Checkpoints
from keras_deepseek.training.data.position_data import check_data, check_targets
from keras_deepseek.training.fit.finite_check import FiniteCheck
from keras_deepseek.training.fit.guard_callback import GuardCallback
from keras_deepseek.training.fit.tune_malloc import tune_malloc
from keras_deepseek.training.step.gradient_clip import check_single_clip
from keras_deepseek.training.step.gradient_update import GradientUpdate
from keras_deepseek.training.step.guard_metric import GuardMetric
from keras_deepseek.training.step.layer_statistics import LayerStatistics
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.loss.loss_weight import check_reduction
from keras_deepseek.training.step.loss.missing_loss import check_test_loss
from keras_deepseek.training.step.parallelism import ONE_DEVICE, Parallelism
from keras_deepseek.training.step.precision import step_in_precision
from keras_deepseek.training.step.rematerialization import find_blocks
from keras_deepseek.training.step.step_guard import StepGuard
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.step_profiler import StepProfiler
from keras_deepseek.training.step.step_replacement import StepReplacement
from keras_deepseek.training.step.training_step import TrainingStep


class StepPlan:
    """Assembles the training step of a trainer, and installs it in the model during a training.

    Args:
        compute: The trainer's `train_step`.
        policy: The dtype policy of the step, or `None` for the model's own.
        is_own_compute: boolean. `compute` is an override of `Trainer.train_step`.
    """

    def __init__(
        self,
        model: keras.Model,
        compute: Callable[..., Any],
        options: StepOptions,
        policy: keras.DTypePolicy | None = None,
        *,
        is_own_compute: bool,
        checkpoints: Checkpoints | None = None,
        parallelism: Parallelism = ONE_DEVICE,
    ) -> None:
        self.options = options
        self.callbacks: list[keras.callbacks.Callback] = []
        self._model = model
        self._is_own_compute = is_own_compute
        self._compilation = compilation(model)
        self.policy = policy
        self.parallelism = parallelism
        self._program_call = ProgramCall(model) if options.optimize_graph else None
        self._check_options()
        self._guard_metric = self._make_guard_metric(options.make_guard(), checkpoints)
        self.profiler = StepProfiler(model)
        self.step_metrics = StepMetrics()
        """The metrics of each step, for recorders."""
        statistics = LayerStatistics(model, self.step_metrics, is_by_layer=options.layer_statistics)
        self._training_step = TrainingStep(
            model,
            compute,
            GradientUpdate(model, options, self._guard_metric, parallelism.residual, statistics),
            options,
            statistics=statistics,
            guard=self._guard_metric,
            parallelism=parallelism,
            on_built=functools.partial(self._place_layers, is_in_step=True),
        )
        if model.built:  # Otherwise the first step finds the layers.
            self._in_precision(lambda: find_blocks(model, options.remat))()
        self._step = self._make_step()

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
        if not self._is_own_compute:
            check_reduction(self._model.loss)
        if overrides_train_step(self._model):
            ignored = {
                **self.options.changes_to_updates(),
                "the trainer's own `train_step`": self._is_own_compute,
                "other processes": self.parallelism.replicas is not None,
                "`gradient_compression`": self.parallelism.residual is not None,
                "several devices": self.parallelism.devices is not None,
            }
            _refuse_own_step(self._model, [name for name, is_asked in ignored.items() if is_asked])

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which the model trains by this plan's step."""
        self.check_model()
        with contextlib.ExitStack() as stack:
            if self.options.tune_malloc:
                stack.enter_context(tune_malloc())
            stack.enter_context(self._step.use())
            if self._guard_metric is not None:
                stack.enter_context(add_metric(self._model, self._guard_metric))
            yield

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
        guard_metric = GuardMetric(guard, self.steps_per_execution)
        roll_back = None if checkpoints is None else checkpoints.roll_back
        self.callbacks.append(GuardCallback(guard, guard_metric, roll_back))
        return guard_metric

    @property
    def loss(self) -> BatchLoss:
        """The compiled loss, which `Trainer.train_step` computes."""
        return self._training_step.loss

    @property
    def needs_targets(self) -> bool:
        """True if the only loss is a Keras loss between outputs and targets."""
        is_keras_default = type(self._model).compute_loss is keras.Model.compute_loss
        is_ours = not (self._is_own_compute or overrides_train_step(self._model))
        return is_ours and is_keras_default and self._model.loss is not None

    @property
    def num_steps(self) -> int:
        """The number of steps of this training so far."""
        return self._step.num_calls * self.steps_per_execution

    @property
    def steps_per_execution(self) -> int:
        """The number of steps that one call of the compiled function runs."""
        return int(self._model.steps_per_execution)

    @property
    def is_running(self) -> bool:
        """True during a step, and after an error that came from a step."""
        return self._step.is_running

    def check_model(self) -> None:
        """Raises an error if this plan can't train the model at the moment.

        The model is being trained, was compiled again, or has other trainable weights than its
        optimizer was built for.
        """
        self._step.check_not_training()
        if compilation(self._model) is not self._compilation:
            raise InvalidInputError(
                f"Model {self._model.name!r} was compiled again after this trainer was made, by "
                "another Trainer or by model.compile. It would train with that optimizer and loss. "
                "Make a new Trainer, or give each Trainer its own model."
            )
        _check_trainable(self._model)

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
        return int(self._in_precision(self._training_step.count_kept_bytes)(data))

    def _make_step(self) -> StepReplacement:
        """Makes the training step that replaces the model's own."""
        model, train_step = self._model, self._model.train_step
        worker_step = self.parallelism.worker_step
        prepare: Callable[[], Any] = self._place_layers
        extra_variables: Callable[[], Sequence[keras.Variable]] = list
        if worker_step is not None:  # The workers apply the precision, and hold the layers.
            train_step = backend.current().step.make_train_step(model, worker_step)
            return StepReplacement(model, train_step, is_eager=True)
        if not overrides_train_step(model):
            prepare, extra_variables = self._prepare, self._training_step.extra_variables
            train_step = backend.current().step.make_train_step(
                model, self._training_step, extra_variables
            )
        return StepReplacement(
            model,
            self._in_precision(train_step),
            self._in_precision(prepare),
            extra_variables,
            is_compilable=self.parallelism.is_compilable,
            step_metrics=self.step_metrics,
            profiler=self.profiler,
        )

    def _prepare(self) -> None:
        self._place_layers()
        self._training_step.prepare()

    def _place_layers(self, *, is_in_step: bool = False) -> None:
        if self.parallelism.place_layers is not None:
            self.parallelism.place_layers(self._model, is_in_step=is_in_step)

    def _in_precision(self, step: Callable[..., Any]) -> Callable[..., Any]:
        if self._program_call is not None:
            step = self._program_call.in_use()(step)
        if self.policy is None:
            return step
        return step_in_precision(self._model, self.policy, step, self.options.float32_layers)


def _check_trainable(model: keras.Model) -> None:
    """Raises an error if weights were frozen or unfrozen in a way the optimizer can't handle."""
    optimized, trainable = optimized_variables(model.optimizer), model.trainable_variables
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if optimized is None:
        return
    ids = {id(variable) for variable in optimized}
    new = [variable.path for variable in trainable if id(variable) not in ids]
    if new:
        what = f"{new[0]!r} became trainable after the optimizer was built without it"
    elif optimizer.use_ema and len(trainable) < len(optimized):
        what = "Weights were frozen after the optimizer was built with use_ema for all of them"
    else:
        return
    raise InvalidInputError(f"{what}. Make a new Trainer, with a new optimizer (optimizer=...).")


def _refuse_own_step(model: keras.Model, ignored: list[str]) -> None:
    if ignored:
        raise InvalidInputError(
            f"Model {model.name!r} has its own `train_step`, which would ignore "
            f"{' and '.join(ignored)}. Move its code to an override of `Trainer.train_step`."
        )
