"""The learning rate as a function of the optimizer's step."""

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.artifacts.argument_check import check_integer, check_number
from keras_deepseek.artifacts.errors import InvalidInputError

Schedule = Callable[[int, int, float, float], float]


class LRScheduler(keras.callbacks.Callback):
    """Sets the learning rate before every step.

    Choose it over `keras.optimizers.schedules` when the schedule is a Python function of your own,
    and over `keras.callbacks.LearningRateScheduler`, which knows epochs alone, for a warm-up. The
    step is the optimizer's own count of updates, so a second `fit`, or a model that was loaded with
    its optimizer, goes on where the first stopped.

    Args:
        func: function. Called with `(step, total_steps, initial_lr, final_lr)`, returns the
            learning rate of that step. `step` is the number of updates made before it: 0 for the
            first. Beyond `total_steps` it stays at `total_steps`.
        total_steps: integer. The number of updates that the schedule spans.
        initial_lr: float. Handed to `func`. Defaults to `0.0`.
        final_lr: float. Handed to `func`. Defaults to `0.001`.

    Raises:
        InvalidInputError: `total_steps` or a rate is no such number, or `func` returned what is no
            learning rate. When training starts: the optimizer has a schedule already, or the
            `steps_per_execution` of the model is not 1.

    Example:

    >>> def warmup_lr(step, total_steps, initial_lr, final_lr):
    ...     return initial_lr + (final_lr - initial_lr) * step / total_steps
    >>> scheduler = LRScheduler(func=warmup_lr, total_steps=10, initial_lr=0.0, final_lr=1.0)
    >>> [scheduler.learning_rate(step) for step in (0, 5, 10, 99)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(
        self,
        func: Schedule,
        *,
        total_steps: int,
        initial_lr: float = 0.0,
        final_lr: float = 0.001,
    ) -> None:
        super().__init__()
        if not callable(func):
            raise InvalidInputError(
                "`func` must be a function (step, total_steps, initial_lr, final_lr) -> rate; "
                f"received {func!r}."
            )
        self.func = func
        self.total_steps = check_integer("total_steps", total_steps)
        self.initial_lr = check_number("initial_lr", initial_lr)
        self.final_lr = check_number("final_lr", final_lr)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update that follows `step` updates.

        Args:
            step: integer. The number of updates made before.

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
        """Refuses an optimizer with a schedule of its own, and steps that nobody is told of."""
        if self.model.steps_per_execution != 1:
            raise InvalidInputError(
                f"The model runs {self.model.steps_per_execution} steps before its callbacks are "
                "called, so their rates can't be set one by one. Compile it with "
                "steps_per_execution=1, or give the optimizer a keras.optimizers.schedules object."
            )
        optimizer = self.model.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if isinstance(inner.get_config()["learning_rate"], dict):
            raise InvalidInputError(
                "The optimizer already has a schedule as its learning_rate, and one schedule is "
                "enough: give it a number, or leave LRScheduler out."
            )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the rate of the coming step."""
        # On JAX the training state lives outside of the variables during an epoch: reading
        # `self.model`, and nothing that was stored before, brings it back so that the assignment
        # holds.
        optimizer = self.model.optimizer
        optimizer.learning_rate = self.learning_rate(int(optimizer.iterations))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the rate of the epoch's last step to the logs."""
        if logs is not None:
            logs["learning_rate"] = float(
                keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            )
