"""The setup of a training before `model.fit`, and its cleanup afterwards."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.callbacks.lr_scheduler import refuse_two_schedules
from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.checkpoints import Checkpoints, has_ended
from keras_deepseek.training.checkpoints.streamed_training import feed
from keras_deepseek.training.checkpoints.training_state import write_weights
from keras_deepseek.training.cluster.evaluate_together import validating_together
from keras_deepseek.training.cluster.placement import Placement
from keras_deepseek.training.cluster.rank_consistency import (
    check_consistent_across_ranks,
    data_shapes,
    plain_attributes,
)
from keras_deepseek.training.data.position_data import (
    check_data,
    check_options,
    check_targets,
    check_validation_targets,
)
from keras_deepseek.training.fit.error_notes import PositionTracker, error_notes
from keras_deepseek.training.fit.fit_callbacks import (
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
from keras_deepseek.training.step.loss.missing_loss import check_test_loss
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

    def check_peers(self, gradient_compression: Any) -> None:
        """Raises an error if the processes have different models or options."""
        policy = self._plan.policy
        optimizer = getattr(self._model.optimizer, "inner_optimizer", self._model.optimizer)
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
                "gradient_compression": gradient_compression,
            },
        )

    def print_once(self, notice: str) -> None:
        """Prints a text at the start of the next training that shows its progress, and logs it."""
        _logger.info(notice)
        self._notices.append(notice)

    def resume(self) -> int | None:
        """Makes the next training continue from the newest checkpoint; see `Trainer.resume`."""
        if self._checkpoints is None:
            raise InvalidInputError(
                "There is no checkpoint to resume from: name the folder of the checkpoints, "
                "Trainer(..., checkpoint_dir=...)."
            )
        self.resumed = self._checkpoints.latest()
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
        own_callbacks, verbose = arguments.pop("callbacks"), arguments.pop("verbose")
        self._check(arguments, resume)
        goes_on = resume or self.resumed is not None
        position = PositionTracker(self._plan)
        plan_callbacks = [position, self._plan.profiler, *self._plan.callbacks]
        chosen = [*plan_callbacks, *callbacks, *list_callbacks(own_callbacks)]
        # All processes must run the same step, also those that write no record.
        is_recorded = self._processes.broadcast(find_recorders(chosen) != [])
        if self._processes.rank > 0:
            chosen, verbose = without_writers(chosen), 0
        if resume and self.resumed is None:
            self.resume()
        refuse_two_schedules(self._model.optimizer, chosen)
        run_workers = self._plan.parallelism.run_workers
        if verbose:
            self._print_notices(arguments["epochs"])
        with (
            error_notes(self._model, self._plan, position),
            prepared_callbacks(chosen, verbose, resume=goes_on) as keras_verbose,
            self._recording(chosen, arguments, is_recorded=is_recorded),
            self.in_training(),
            validating_together(self._model, self._processes),
            self._feed(
                {**arguments, "callbacks": chosen, "verbose": keras_verbose},
                needs_stream=needs_stream or run_workers is not None,
            ) as fit_arguments,
            contextlib.nullcontext() if run_workers is None else run_workers(fit_arguments),
        ):
            if isinstance(fit_arguments["x"], PositionedData):
                self._plan.step_metrics.stream = fit_arguments["x"].stream
            yield fit_arguments

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """Context manager in which `model.fit` uses the plan's steps and the training's devices."""
        with (
            self._placement.in_use(self._model),
            backend.current().step.restoring_variables(self._model),
            self._plan.in_use(),
        ):
            yield

    def _recording(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        arguments: dict[str, Any],
        *,
        is_recorded: bool,
    ) -> contextlib.AbstractContextManager[None]:
        uses_workers = self._plan.parallelism.uses_workers
        checkpoints = None if uses_workers else self._checkpoints
        return recording(
            find_recorders(callbacks),
            self._plan.step_metrics if is_recorded else None,
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
        """Raises an error if an argument of `fit` is invalid, before the training starts."""
        self._plan.check_model()
        check_data(arguments["x"], arguments["batch_size"])
        if self._plan.needs_targets:
            check_targets(arguments["x"], arguments["y"])
            check_validation_targets(arguments.get("validation_data"))
        if arguments.get("validation_data") is not None or arguments.get("validation_split"):
            check_test_loss(self._model)
        check_boolean("resume", resume)
        check_options(arguments, resume=resume or self.resumed is not None)
        check_consistent_across_ranks(
            self._processes,
            {
                "the shapes of the data": data_shapes(arguments["x"], arguments["y"]),
                **{name: arguments.get(name) for name in ("batch_size", "epochs", "shuffle")},
                "steps_per_epoch": arguments.get("steps_per_epoch"),
            },
        )

    def _print_notices(self, epochs: int) -> None:
        while self._notices:
            print(self._notices.pop(0))
        if self.resumed is not None and not has_ended(self.resumed, epochs):
            print(f"The training continues after step {self.resumed.step}.")

    def _feed(
        self, arguments: dict[str, Any], *, needs_stream: bool
    ) -> contextlib.AbstractContextManager[dict[str, Any]]:
        if self._checkpoints is None:
            return feed(self._model, arguments, self._processes, needs_stream=needs_stream)
        resumed, self.resumed = self.resumed, None
        return self._checkpoints.training(self._model, arguments, resumed, self._plan.policy)
