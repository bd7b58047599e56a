"""The setup of a training before `model.fit`, and its cleanup afterwards."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from types import GeneratorType
from typing import Any, Literal

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.backend.checkpoint_weights import write_weights
from keras_deepseek.backend.data.array_feed import with_fed_arrays, with_fed_validation
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.callbacks import grouped_callbacks
from keras_deepseek.backend.keras_private.optimizers import averaging_updates, plain_optimizer
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.callbacks.lr_scheduler import refuse_two_schedules
from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.checkpoints import Checkpoints, has_ended
from keras_deepseek.training.checkpoints.streamed_training import feed
from keras_deepseek.training.cluster.evaluate_together import validating_together
from keras_deepseek.training.cluster.placement import Placement
from keras_deepseek.training.cluster.rank_consistency import (
    check_consistent_across_ranks,
    data_shapes,
    plain_attributes,
)
from keras_deepseek.training.data.class_weights import weigh_classes
from keras_deepseek.training.data.position_data import (
    check_data,
    check_options,
    check_targets,
    check_validation_targets,
)
from keras_deepseek.training.fit.error_notes import PositionTracker, error_notes
from keras_deepseek.training.fit.fit_callbacks import (
    ScheduleCheck,
    list_callbacks,
    prepared_callbacks,
    without_writers,
)
from keras_deepseek.training.fit.recording import (
    find_recorders,
    graph_documents,
    optimizer_arguments,
    plain_arguments,
    recording,
)
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.step.loss.batch_loss import check_test_loss
from keras_deepseek.training.step.step_guard import StepGuard

_logger = logging.getLogger(__name__)


class Session:
    """Sets up and cleans up the trainings of one trainer."""

    def __init__(
        self,
        model: keras.Model,
        plan: StepPlan,
        processes: Processes,
        placement: Placement,
        checkpoints: Checkpoints | None,
        arguments: dict[str, Any],
    ) -> None:
        self._arguments = arguments  # The trainer's, for run records.
        self._model = model
        self._plan = plan
        self._processes = processes
        self._placement = placement
        self._checkpoints = checkpoints
        self._notices: list[str] = []
        self.resumed: Checkpoint | None = None
        """The checkpoint that the next training continues from."""

    def check_peers(self, **options: Any) -> None:
        """Raises an error if the processes have different models or options."""
        if self._processes.world_size == 1:
            return
        policy = self._plan.policy
        optimizer = plain_optimizer(self._model.optimizer)
        check_consistent_across_ranks(
            self._processes,
            {
                "the model": [
                    (variable.shape, variable.dtype) for variable in self._model.variables
                ],
                "the optimizer": plain_attributes(optimizer),
                "the precision": policy and policy.name,
                **{
                    name: plain_attributes(value) if isinstance(value, StepGuard) else value
                    for name, value in self._plan.options.shared_options().items()
                },
                **options,
            },
        )

    def print_once(self, notice: str) -> None:
        """Prints a text at the start of the next training that shows its progress, and logs it."""
        _logger.info(notice)
        self._notices.append(notice)

    def load_best(self, *, use_ema: bool) -> int:
        """Gives the model the weights of the best checkpoint; see `Trainer.load_best`."""
        checkpoint = self._read("best")
        if checkpoint is None:  # `read` has raised an error.
            raise RuntimeError("There is no best checkpoint.")
        write_weights(self._model, checkpoint.state["variables"], use_ema=use_ema)
        return checkpoint.step

    def _read(self, step: Literal["best"] | None) -> Checkpoint | None:
        if self._checkpoints is None:
            raise InvalidInputError(
                "There is no checkpoint to resume from: name the folder of the checkpoints, "
                "Trainer(..., checkpoint_dir=...)."
            )
        return self._checkpoints.read(step)

    def resume(self, step: Literal["best"] | None = None) -> int | None:
        """Makes the next training continue from a checkpoint; see `Trainer.resume`."""
        self.resumed = self._read(step)
        if self.resumed is None:
            return None
        if self._model.built:
            write_weights(self._model, self.resumed.state["variables"])
        else:
            _logger.warning(
                "Model %r is not built yet. It gets the weights of the checkpoint when the next "
                "fit builds it. To have them now, call the model on a batch before.",
                self._model.name,
            )
        return self.resumed.step

    @contextlib.contextmanager
    def training(
        self,
        arguments: dict[str, Any],
        callbacks: Sequence[keras.callbacks.Callback],
        *,
        resume: bool,
        needs_stream: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """Context manager that sets up a training, and yields the arguments for `keras.Model.fit`.

        `callbacks` are the trainer's own, which run before those of `fit`. With `needs_stream`,
        batches must come from our own stream.
        """
        arguments = dict(arguments)
        fit_callbacks, verbose = arguments.pop("callbacks"), arguments.pop("verbose")
        self._check(arguments, resume)
        arguments = weigh_classes(self._model, arguments)
        user_callbacks = [*callbacks, *list_callbacks(fit_callbacks)]
        is_recorded = bool(user_callbacks and find_recorders(user_callbacks))
        if self._processes.world_size > 1:
            # All processes must run the same step, also those that write no record.
            is_recorded = self._processes.broadcast(is_recorded)
        if self._processes.rank > 0:
            user_callbacks, verbose = without_writers(user_callbacks), 0
        if resume and self.resumed is None:
            self.resume()
        first_epoch = arguments.get("initial_epoch", 0) if self.resumed is None else None
        schedule_check = ScheduleCheck(user_callbacks, first_epoch)
        chosen = [*self._plan.callbacks, schedule_check, *user_callbacks]
        if user_callbacks:
            refuse_two_schedules(self._model.optimizer, user_callbacks)
        if verbose:
            self._print_notices(arguments["epochs"])
        record = self._recording(chosen, arguments) if is_recorded else contextlib.nullcontext()
        with (
            self._reporting(chosen, verbose, record, resume=resume) as verbose_of_keras,
            self.in_training(),
            self._feed(
                {**arguments, "callbacks": chosen, "verbose": verbose_of_keras},
                needs_stream=needs_stream,
            ) as fit_arguments,
        ):
            yield fit_arguments

    @contextlib.contextmanager
    def _reporting(
        self,
        callbacks: list[keras.callbacks.Callback],
        verbose: str | int,
        record: contextlib.AbstractContextManager[None],
        *,
        resume: bool,
    ) -> Iterator[str | int]:
        """Context manager that shows and records a training and its errors; yields `verbose`."""
        resume = resume or self.resumed is not None
        callbacks.insert(0, position := PositionTracker(self._plan.step))
        with (
            error_notes(self._model, self._plan.step, position),
            prepared_callbacks(callbacks, verbose, resume=resume) as verbose_of_keras,
            record,
        ):
            yield verbose_of_keras

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """Context manager in which the model is on its devices, and trains by the compiled step."""
        self._plan.step.check_model()
        with (
            self._placement.in_use(self._model),
            backend.current().step.restoring_variables(self._model),
            averaging_updates(self._model.optimizer),
            self._plan.step.use(),
            self._plan.evaluating(),
        ):
            yield

    def _recording(
        self, callbacks: Sequence[keras.callbacks.Callback], arguments: dict[str, Any]
    ) -> contextlib.AbstractContextManager[None]:
        uses_workers = self._plan.parallelism.uses_workers
        checkpoints = None if uses_workers else self._checkpoints
        return recording(
            find_recorders(callbacks),
            self._plan.step_metrics,
            arguments={
                **self._arguments,
                **plain_arguments(arguments),
                **optimizer_arguments(self._model.optimizer),
            },
            documents=graph_documents(
                self._model,
                self._plan.step_metrics,
                arguments.get("batch_size"),
                optimize_graph=self._plan.options.optimize_graph,
            ),
            request_checkpoint=None if checkpoints is None else checkpoints.request,
            request_profile=None if uses_workers else self._plan.profiler.request,
        )

    def _check(self, arguments: dict[str, Any], resume: bool) -> None:
        self._plan.step.check_model()
        check_data(arguments["x"], arguments["batch_size"])
        if self._plan.needs_targets:
            check_targets(arguments["x"], arguments["y"])
            check_validation_targets(arguments.get("validation_data"))
        if arguments.get("validation_data") is not None or arguments.get("validation_split"):
            check_test_loss(self._model)
        check_boolean("resume", resume)
        check_options(arguments, resume=resume or self.resumed is not None)
        if self._processes.world_size > 1:
            compared = ("batch_size", "epochs", "shuffle", "steps_per_epoch")
            check_consistent_across_ranks(
                self._processes,
                {
                    "the shapes of the data": data_shapes(arguments["x"], arguments["y"]),
                    **{name: arguments.get(name) for name in compared},
                },
            )

    def _print_notices(self, epochs: int) -> None:
        while self._notices:
            print(self._notices.pop(0))
        if self.resumed is not None and not has_ended(self.resumed, epochs):
            print(f"The training continues after step {self.resumed.step}.")

    @contextlib.contextmanager
    def _feed(self, arguments: dict[str, Any], *, needs_stream: bool) -> Iterator[dict[str, Any]]:
        """Context manager that opens the data, and yields the arguments for `keras.Model.fit`.

        It takes checkpoints, and runs the workers of a parameter server.
        """
        run_workers = self._plan.parallelism.run_workers
        needs_stream = needs_stream or run_workers is not None or self._processes.world_size > 1
        size = arguments.get("validation_batch_size") or arguments["batch_size"]
        arguments = {**arguments, "validation_batch_size": size}  # Keras would not see the latter.
        with contextlib.ExitStack() as stack:
            if self._processes.world_size > 1:
                stack.enter_context(validating_together(self._model, self._processes))
            if self._checkpoints is not None:
                resumed, self.resumed = self.resumed, None
                arguments = stack.enter_context(
                    self._checkpoints.training(self._model, arguments, resumed, self._plan.policy)
                )
            elif needs_stream or _is_better_streamed(arguments["x"]):
                arguments = stack.enter_context(
                    feed(self._model, arguments, self._processes, needs_stream=needs_stream)
                )
            else:
                stack.enter_context(grouped_callbacks())
                arguments = with_fed_arrays(self._model, "fit", arguments)
            if self._processes.world_size == 1:
                arguments = with_fed_validation(self._model, arguments)
            if run_workers is not None:
                stack.enter_context(run_workers(arguments))
            if isinstance(arguments["x"], PositionedData):
                self._plan.step_metrics.stream = arguments["x"].stream
            yield arguments


def _is_better_streamed(x: Any) -> bool:
    """Returns True for data that our own stream reads better than Keras.

    Of a generator, Keras draws the first batches in advance, and when it ends goes on with those
    few for ever.
    """
    return isinstance(x, GeneratorType) or backend.current().step.prefers_own_feed(x)
