"""Learning rate schedules as functions of the optimizer's step."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.callbacks import active_callbacks
from keras_deepseek.backend.keras_private.trainers import compilation, temporary_train_step
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError

Schedule = Callable[[int, int, float, float], float]

_logger = logging.getLogger(__name__)

_MOST_IN_STEP = 1_000_000  # The most rates in a compiled step: 4 MB, one second to compute.


class LRScheduler(keras.callbacks.Callback):
    """Sets the learning rate of every step.

    Choose it over `keras.optimizers.schedules` if the schedule is your own Python function, and
    over `keras.callbacks.LearningRateScheduler`, which works by epoch, for a warm-up. The step is
    the optimizer's count of updates, so a second `fit`, or a model loaded with its optimizer,
    continues where the first stopped.

    On TensorFlow and JAX the rates become part of the compiled step, so `steps_per_execution` may
    be above 1. `func` is called for all steps when the training begins, so its result may depend
    only on its arguments. On PyTorch, and for more than a million steps, `func` is called before
    each step.

    Args:
        func: function. Takes `(step, total_steps, initial_lr, final_lr)` and returns the learning
            rate of that step. `step` is the number of updates before it, 0 for the first, and at
            most `total_steps`.
        total_steps: integer. The number of updates that the schedule spans.
        initial_lr: float. Passed to `func`. Defaults to `0.0`.
        final_lr: float. Passed to `func`. Defaults to `0.001`.

    Raises:
        InvalidInputError: `total_steps` is below 1, or `func` returned no valid learning rate. When
            training starts: the optimizer or another callback has a schedule too, or
            `steps_per_execution` is not 1 and `func` must be called before each step.

    Example:

    >>> def warmup_lr(step, total_steps, initial_lr, final_lr):
    ...     return initial_lr + (final_lr - initial_lr) * step / total_steps
    >>> scheduler = LRScheduler(func=warmup_lr, total_steps=10, initial_lr=0.0, final_lr=1.0)
    >>> [scheduler.learning_rate(step) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(
        self, func: Schedule, *, total_steps: int, initial_lr: float = 0.0, final_lr: float = 0.001
    ) -> None:
        super().__init__()
        if not callable(func):
            raise InvalidInputError(
                "`func` must be a function (step, total_steps, initial_lr, final_lr) -> rate; "
                f"received {func!r}."
            )
        _check_arguments(func)
        self.func = func
        self.total_steps = check_integer("total_steps", total_steps)
        self.initial_lr = check_number("initial_lr", initial_lr)
        self.final_lr = check_number("final_lr", final_lr)
        self._compiled_schedule: CompiledSchedule | None = None
        self._is_in_step = False

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update that follows `step` updates.

        Args:
            step: integer. The number of updates before it.

        Raises:
            InvalidInputError: `func` returned something negative, not finite, or not a number.
        """
        step = min(step, self.total_steps)
        received = self.func(step, self.total_steps, self.initial_lr, self.final_lr)
        try:
            rate = float(received)
        except (TypeError, ValueError):
            rate = math.nan
        if not (math.isfinite(rate) and rate >= 0.0):
            raise InvalidInputError(
                f"The schedule {getattr(self.func, '__name__', self.func)!r} returned {received!r} "
                f"for step {step}; expected a finite number that is not negative."
            )
        return rate

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the rates into the compiled step if possible; refuses a second schedule."""
        model = self.model
        refuse_two_schedules(model.optimizer, active_callbacks(self))
        self._is_in_step = self.total_steps <= _MOST_IN_STEP and self._install()
        if not self._is_in_step and model.steps_per_execution != 1:
            raise InvalidInputError(
                f"The model has steps_per_execution={model.steps_per_execution}, so the rates of "
                f"{self.total_steps} steps can't be set one by one. Compile it with "
                "steps_per_execution=1, or give the optimizer a keras.optimizers.schedules object."
            )
        _logger.debug(
            "LRScheduler: the rates are %s.",
            "part of the compiled step" if self._is_in_step else "set before each step",
        )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate of the coming step."""
        if self._is_in_step and self._compiled_schedule is not None:
            self._compiled_schedule.announce()
            return
        # On JAX the training state is outside of the variables during an epoch. Reading
        # `self.model`, not a stored reference, writes it back, so that the assignment lasts.
        optimizer = self.model.optimizer
        optimizer.learning_rate = self.learning_rate(int(optimizer.iterations))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the rate of the epoch's last step to the logs."""
        if logs is not None:
            logs["learning_rate"] = float(
                keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the model's own step; the optimizer keeps the last rate."""
        if self._compiled_schedule is not None:
            self._compiled_schedule.remove(self.model)

    def _install(self) -> bool:
        if self._compiled_schedule is None:
            rates = [self.learning_rate(step) for step in range(self.total_steps + 1)]
            self._compiled_schedule = CompiledSchedule(np.array(rates))
        return self._compiled_schedule.install(self.model)


def refuse_two_schedules(
    optimizer: keras.optimizers.Optimizer, callbacks: Iterable[keras.callbacks.Callback]
) -> None:
    """Raises an error if more than one schedule would set the learning rate."""
    classes = (
        LRScheduler,
        keras.callbacks.LearningRateScheduler,
        keras.callbacks.ReduceLROnPlateau,
    )
    names = [type(callback).__name__ for callback in callbacks if isinstance(callback, classes)]
    if names and not isinstance(optimizer.learning_rate, keras.Variable):
        names.insert(0, "the optimizer's learning_rate")
    if len(names) > 1:
        raise InvalidInputError(
            f"A training can have only one schedule, received {len(names)}: {', '.join(names)}. "
            "Give the optimizer a number as learning_rate, or remove callbacks."
        )


def _check_arguments(func: Schedule) -> None:
    try:
        signature = inspect.signature(func)
    except ValueError:  # Some functions written in C have no signature.
        return
    try:
        signature.bind(0, 1, 0.0, 0.0)
    except TypeError as error:
        raise InvalidInputError(
            f"`func` must take (step, total_steps, initial_lr, final_lr), received a function of "
            f"{signature}: {error}."
        ) from error


class CompiledSchedule:
    """Puts learning rates into a model's compiled step, chosen by the optimizer's count of updates.

    The model keeps its own step. The step with rates is a second function, which runs only after a
    call of `announce`: a training that fails leaves no schedule behind for the next one. The
    optimizer's variable holds the rate of each step, as if it had been assigned.

    Args:
        rates: NumPy array. The rate of each step; the last one holds beyond the end.
    """

    def __init__(self, rates: Array) -> None:
        self._rates = rates
        self._model: Any = None
        self._made_for: tuple[Any, Any] = (None, None)
        self._function: Any = None
        self._switch: _Switch | None = None

    def install(self, model: keras.Model) -> bool:
        """Installs the step with rates in a compiled model; returns true on success."""
        compiled, train_step = self._made_for
        # The step is compiled once for all trainings.
        if compiled is not compilation(model) or train_step != model.train_step:
            self._function = self._compile(model)
            self._made_for = (compilation(model), model.train_step)
        if self._function is None:
            return False
        plain = model.train_function
        if isinstance(plain, _Switch):  # Left over from a failed training.
            plain = plain.plain
        model.train_function = self._switch = _Switch(plain, self._function)
        return True

    def announce(self) -> None:
        """Makes the next training step set its learning rate."""
        if self._switch is not None:
            self._switch.is_on = True

    def remove(self, model: keras.Model) -> None:
        """Restores the model's own training step."""
        if self._switch is not None and model.train_function is self._switch:
            model.train_function = self._switch.plain
        self._switch = None

    def _compile(self, model: keras.Model) -> Any:
        """Returns a train function that sets the rate; `None` where the backend has none."""
        self._model = model
        step = backend.current().step.run_before_step(model, model.train_step, self._set_rate)
        if step is None:
            return None
        plain = model.train_function
        with temporary_train_step(model, step):
            model.make_train_function(force=True)
        function, model.train_function = model.train_function, plain
        return function

    def _set_rate(self) -> None:
        optimizer = self._model.optimizer
        step = ops.minimum(optimizer.iterations, len(self._rates) - 1)
        rates = ops.convert_to_tensor(self._rates, dtype=optimizer.learning_rate.dtype)
        optimizer.learning_rate = ops.take(rates, step)


class _Switch:
    """A train function that calls another function instead if `is_on` was set before the call."""

    def __init__(self, plain: Callable[..., Any], other: Callable[..., Any]) -> None:
        self.plain = plain
        self.is_on = False
        self._other = other

    def __call__(self, *arguments: Any) -> Any:
        function = self._other if self.is_on else self.plain
        self.is_on = False
        return function(*arguments)
