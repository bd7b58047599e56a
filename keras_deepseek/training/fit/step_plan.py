"""The assembly of a training step from the options of a trainer."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import optimized_variables
from keras_deepseek.backend.keras_private.trainers import compilation, overrides_train_step
from keras_deepseek.backend.processes.processes import RemoteReplicas, Replicas
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.graph.program_call import ProgramCall
from keras_deepseek.training.checkpoints.checkpoints import Checkpoints
from keras_deepseek.training.cluster.layer_placement import LayerPlacement
from keras_deepseek.training.fit.finite_check import FiniteCheck
from keras_deepseek.training.fit.guard_callback import GuardCallback
from keras_deepseek.training.fit.kept_memory import kept_memory
from keras_deepseek.training.step.gradient_clip import check_single_clip
from keras_deepseek.training.step.gradient_update import GradientUpdate
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.make_gradients import make_gradients
from keras_deepseek.training.step.guard_metric import GuardMetric
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.loss.loss_weight import check_reduction
from keras_deepseek.training.step.precision import step_in_precision
from keras_deepseek.training.step.rematerialization import find_blocks
from keras_deepseek.training.step.step_guard import StepGuard
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.step_replacement import StepReplacement
from keras_deepseek.training.step.training_step import TrainingStep


class StepPlan:
    """Assembles the training step of a trainer, and installs it in the model during a training.

    Args:
        model: `keras.Model`, compiled.
        compute: The trainer's `train_step`.
        loss: `BatchLoss` of the model.
        options: `StepOptions`.
        policy: The dtype policy of the step, or `None` for the model's own.
        is_own_compute: boolean. `compute` is an override of `Trainer.train_step`.
        checkpoints: `Checkpoints` to roll back to. Defaults to `None`.
        replicas: `RemoteReplicas` in other processes that compute each step together. Defaults to
            `None`.
        devices: `Replicas` in this process. Defaults to `None`.
        layers: `LayerPlacement` of the model's layers on several devices. Defaults to `None`.
        residual: `GradientResidual` of compressed gradients. Defaults to `None`.
        served: Function that computes a step by the workers of a parameter server. Defaults to
            `None`.

    Raises:
        InvalidInputError: An option does not fit the model, or the model has its own `train_step`,
            which would ignore an option.
    """

    def __init__(  # noqa: PLR0913 - a step has these parts.
        self,
        model: keras.Model,
        compute: Callable[..., Any],
        loss: BatchLoss,
        options: StepOptions,
        policy: keras.DTypePolicy | None = None,
        *,
        is_own_compute: bool,
        checkpoints: Checkpoints | None = None,
        replicas: RemoteReplicas | None = None,
        devices: Replicas | None = None,
        layers: LayerPlacement | None = None,
        residual: GradientResidual | None = None,
        served: Callable[[Any], dict[str, Any]] | None = None,
    ) -> None:
        check_single_clip(options.gradient_clip, model.optimizer)
        if not is_own_compute:
            check_reduction(model.loss)
        if overrides_train_step(model):
            ignored = {
                **options.changes_to_updates(),
                "the trainer's own `train_step`": is_own_compute,
                "other processes": replicas is not None,
                "`gradient_compression`": residual is not None,
                "several devices": devices is not None,
            }
            _refuse_own_step(model, [name for name, is_asked in ignored.items() if is_asked])
        self.options = options
        self.callbacks: list[keras.callbacks.Callback] = []
        self._model = model
        self._is_own_compute = is_own_compute
        self._compilation = compilation(model)
        self._policy = policy
        self._served = served
        self._layers = layers
        self._program_call = ProgramCall(model) if options.optimize_graph else None
        self._guard_metric = self._make_guard_metric(options.make_guard(), checkpoints)
        self._training_step = TrainingStep(
            model,
            loss,
            make_gradients(
                model,
                compute,
                loss,
                micro_batches=options.micro_batches,
                devices=devices,
                replicas=replicas,
                residual=residual,
            ),
            GradientUpdate(model, options, self._guard_metric, residual),
            options,
            guard=self._guard_metric,
            residual=residual,
            takes_empty=replicas is not None,
            on_built=lambda: self._place_layers(is_in_step=True),
        )
        if model.built:  # Otherwise the first step finds the layers.
            self._in_precision(lambda: find_blocks(model, options.remat))()
        self._step = self._make_step(
            is_compilable=layers is None  # XLA would compile it for one device.
            and all(each is None or each.is_compilable for each in (replicas, devices))
        )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which the model trains by this plan's step."""
        self.check_model()
        with contextlib.ExitStack() as stack:
            if self.options.keep_memory:
                stack.enter_context(kept_memory())
            stack.enter_context(self._step.use())
            if self._guard_metric is not None:
                stack.enter_context(self._guard_metric.attach(self._model))
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
    def needs_targets(self) -> bool:
        """True if the only loss is a Keras loss between outputs and targets."""
        is_kerass = type(self._model).compute_loss is keras.Model.compute_loss
        is_ours = not (self._is_own_compute or overrides_train_step(self._model))
        return is_ours and is_kerass and self._model.loss is not None

    @property
    def is_served(self) -> bool:
        """True if the workers of a parameter server compute the steps."""
        return self._served is not None

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
        """Raises an error if this plan can't train the model, or can't do so any more.

        Raises:
            InvalidInputError: The model is being trained, was compiled again, or has other
                trainable weights than its optimizer was built for.
        """
        self._step.check_not_training()
        if compilation(self._model) is not self._compilation:
            raise InvalidInputError(
                f"Model {self._model.name!r} was compiled again after this trainer was made, by "
                "another Trainer or by model.compile. It would train with that optimizer and loss. "
                "Make a new Trainer, or give each Trainer its own model."
            )
        _check_trainable(self._model)

    def count_kept_bytes(self, data: Any) -> int:
        """Returns the bytes that a step on a batch keeps for its backward pass.

        Args:
            data: Tensors of a batch, as Keras passes them to a step.

        Raises:
            InvalidInputError: The model has its own `train_step`, which can't be measured.
        """
        if overrides_train_step(self._model):
            _refuse_own_step(self._model, ["measuring memory"])
        return int(self._in_precision(self._training_step.count_kept_bytes)(data))

    def _make_step(self, *, is_compilable: bool) -> StepReplacement:
        """Makes the training step that replaces the model's own."""
        model, train_step = self._model, self._model.train_step
        prepare: Callable[[], Any] = self._place_layers
        extra_variables: Callable[[], Sequence[keras.Variable]] = list
        if self._served is not None:  # The workers apply the precision, and hold the layers.
            return StepReplacement(
                model,
                backend.current().step.make_train_step(model, self._served),
                is_eager=True,
            )
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
            is_compilable=is_compilable,
        )

    def _prepare(self) -> None:
        self._place_layers()
        self._training_step.prepare()

    def _place_layers(self, *, is_in_step: bool = False) -> None:
        if self._layers is not None:
            self._layers.begin(self._model, is_in_step=is_in_step)

    def _in_precision(self, step: Callable[..., Any]) -> Callable[..., Any]:
        if self._program_call is not None:
            step = self._program_call.in_use()(step)
        if self._policy is None:
            return step
        return step_in_precision(self._model, self._policy, step, self.options.float32_layers)


def _check_trainable(model: keras.Model) -> None:
    """Raises an error if weights were frozen or unfrozen in a way the optimizer can't handle."""
    known, trainable = optimized_variables(model.optimizer), model.trainable_variables
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if known is None:
        return
    ids = {id(variable) for variable in known}
    new = [variable.path for variable in trainable if id(variable) not in ids]
    if new:
        what = f"{new[0]!r} became trainable after the optimizer was built without it"
    elif optimizer.use_ema and len(trainable) < len(known):
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
