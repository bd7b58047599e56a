"""The callbacks of one training: those of the user, and those that `Trainer.fit` adds."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from keras_deepseek.backend.keras_private.optimizers import find_schedule, single_optimizers
from keras_deepseek.backend.keras_private.trainers import count_train_steps
from keras_deepseek.callbacks.lr_scheduler import LRScheduler
from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.step_logger import StepLogger
from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.training.checkpoints.training_state import find_not_finite
from keras_deepseek.training.fit.error_notes import add_stop_iteration_check
from keras_deepseek.training.step.warmup_decay import WarmupDecay

_logger = logging.getLogger(__name__)

Callbacks: TypeAlias = keras.callbacks.Callback | Iterable[keras.callbacks.Callback] | None

_TRACK_BEST = (keras.callbacks.EarlyStopping, keras.callbacks.ModelCheckpoint)
"""Callbacks that take the first value for the best so far, even NaN."""

_WRITERS = (
    ProgressDisplay,
    StepLogger,
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)

_STYLES: dict[str | int, Literal["auto", "lines"] | None] = {
    "auto": "auto",
    0: None,
    1: "auto",
    2: "lines",
}


def list_callbacks(callbacks: Callbacks) -> list[keras.callbacks.Callback]:
    """Returns the argument `callbacks` (one callback, several or `None`) as a list."""
    if callbacks is None:
        return []
    several = callbacks if isinstance(callbacks, Iterable) else [callbacks]
    return [check_callback(callback) for callback in several]


def check_callback(callback: Any) -> keras.callbacks.Callback:
    """Returns a value that is a Keras callback, and raises an error for any other value."""
    if not isinstance(callback, keras.callbacks.Callback):
        hint = f" Pass an object: {callback.__name__}()." if isinstance(callback, type) else ""
        raise InvalidInputError(
            f"Expected a keras.callbacks.Callback; received {type(callback).__name__}: "
            f"{callback!r}.{hint}"
        )
    return callback


def without_writers(callbacks: list[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
    """Returns the callbacks of ranks above 0, without those that display or write files."""
    return [callback for callback in callbacks if not isinstance(callback, _WRITERS)]


@contextmanager
def prepared_callbacks(
    callbacks: list[keras.callbacks.Callback], verbose: str | int, *, resume: bool
) -> Iterator[str | int]:
    """Context manager that adds the trainer's callbacks to a list, and yields Keras's `verbose`.

    A `ProgressDisplay` is added if the list has no display. If the training is resumed, its loggers
    continue their files. At the end displays and loggers are closed, also after an error.
    """
    if verbose not in _STYLES:
        raise InvalidInputError(f'`verbose` must be "auto", 0, 1 or 2; received {verbose!r}.')
    style = _STYLES[verbose]
    if _has(callbacks, keras.callbacks.ProgbarLogger):
        for_keras = verbose
    else:
        for_keras = 0
        if style is not None and not _has(callbacks, ProgressDisplay):
            callbacks.append(ProgressDisplay(style))
    callbacks.append(_ResetNaNBest(callbacks))
    loggers = {
        callback: callback.resume for callback in callbacks if isinstance(callback, StepLogger)
    }
    for logger in loggers:
        logger.resume = logger.resume or resume
    add_stop_iteration_check(callbacks)
    try:
        yield for_keras
    finally:  # After an error, Keras does not call `on_train_end`.
        with contextlib.ExitStack() as stack:  # Closes each, even if closing another fails.
            for callback in callbacks:
                if isinstance(callback, ProgressDisplay | StepLogger):
                    stack.callback(callback.close)
            for logger, was_resumed in loggers.items():
                logger.resume = was_resumed


class _ResetNaNBest(keras.callbacks.Callback):
    """Resets the best value of a callback from NaN to the worst possible value.

    No number compares as better than NaN. After the reset a NaN is no improvement, and any number
    is one.
    """

    def __init__(self, callbacks: list[keras.callbacks.Callback]) -> None:
        super().__init__()
        self._callbacks = callbacks

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for callback in self._callbacks:
            if not isinstance(callback, _TRACK_BEST) or callback.best is None:
                continue
            if np.isnan(callback.best):
                callback.best = np.inf if callback.monitor_op(0.0, 1.0) else -np.inf


class ScheduleCheck(keras.callbacks.Callback):
    """Logs a warning before the first step if a schedule would end before the training.

    Args:
        callbacks: Those of the user, among which may be an `LRScheduler`.
        first_epoch: integer. The first epoch, from 0; `None` for a training that is resumed, whose
            optimizer has counted the earlier steps of all epochs.
    """

    def __init__(
        self, callbacks: Iterable[keras.callbacks.Callback], first_epoch: int | None
    ) -> None:
        super().__init__()
        self._schedulers = [entry for entry in callbacks if isinstance(entry, LRScheduler)]
        self._first_epoch = first_epoch

    def get_state(self) -> dict[str, Any]:
        """Returns no state."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because this callback has no state."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares the lengths of the schedules with that of the training, where both are known."""
        epochs, num_batches = self.params.get("epochs"), self.params.get("steps")
        if not epochs or not num_batches:
            return
        total = (epochs - (self._first_epoch or 0)) * num_batches
        if self._first_epoch is not None:
            total += count_train_steps(self.model)
        optimizers = single_optimizers(self.model.optimizer)
        batches = optimizers[0].gradient_accumulation_steps or 1
        for scheduler in self._schedulers:
            _check_length(scheduler, scheduler.learning_rate, total // batches)
        for optimizer in optimizers:
            schedule = find_schedule(optimizer)
            if isinstance(schedule, WarmupDecay):
                steps = schedule.gradient_accumulation_steps or 1
                _check_length(schedule, schedule.learning_rate, total // steps)
            elif schedule is not None:
                batches = optimizer.gradient_accumulation_steps or 1
                _check_length(schedule, schedule, total, batches)


def _check_length(schedule: Any, rate: Callable[[int], Any], total: int, batches: int = 1) -> None:
    """Logs a warning if the rates of a schedule end before a number of steps.

    It does where they end at 0, or where the schedule counts batches of which several make an
    update: a schedule with another last rate may be meant to end early.
    """
    attributes = vars(schedule)
    warmup = attributes.get("warmup_steps")
    counts = (attributes.get("total_steps"), attributes.get("decay_steps"))
    lengths = {
        length + further
        for length in counts
        for further in (0, warmup)
        if isinstance(length, int) and isinstance(further, int) and length + further < total
    }
    for length in sorted(lengths):
        middle, end, *later = (
            float(keras.ops.convert_to_numpy(rate(step))) for step in (length // 2, length, total)
        )
        if later != [end] or middle == end or (end and batches == 1):
            continue
        name = type(schedule).__name__
        advice = (
            f"Keras counts batches, of which gradient_accumulation_steps={batches} make an update: "
            "multiply its steps, or use training.WarmupDecay, which counts updates"
            if batches > 1
            else f"pass it {total} steps"
        )
        _logger.warning(
            "%s ends after %d of %d steps, and its rate is %g in all others: %s.",
            *(name, length, total, end, advice),
        )
        return


class FiniteCheck(keras.callbacks.Callback):
    """Ends a training whose loss is not finite, with an error that names the first such batch.

    It reads logs only after Keras has read them, so that no step waits for it. By then the weights
    may not be finite either, and no checkpoint of them is taken. A `StepGuard` protects the
    weights.

    The loss may be finite where gradients are not: on TensorFlow, `relu` turns NaN into 0. So the
    weights are checked too, before each checkpoint and at the end of each epoch.
    """

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._trained: keras.Model | None = None
        self._epoch = 0
        self._newest = -1  # The last batch of the epoch whose logs were read.
        self._found: tuple[int, int, float] | None = None  # Epoch, batch and loss.
        self._is_checked = False  # The weights were checked after the last step.

    def set_model(self, model: keras.Model) -> None:
        """Keeps the model, since on JAX `self.model` copies all variables back, which is slow."""
        super().set_model(model)
        self._trained = model

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._found = None
        self._is_checked = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._newest = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the first loss that is not finite, and stops the epoch."""
        self._is_checked = False
        self._newest = max(batch, self._newest)
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss):
            return
        # Keras may report steps in another order than it ran them.
        loss_position = (self._epoch, batch, float(loss))
        if self._found is None or loss_position < self._found:
            self._found = loss_position
        if self._trained is not None:
            self._trained.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the weights, and logs a warning if `val_loss` is not finite."""
        loss = (logs or {}).get("val_loss")
        if loss is not None and not math.isfinite(loss):
            _logger.warning(
                "val_loss is %g after epoch %d: look for NaN in the validation data, and for "
                "labels outside the classes.",
                *(loss, epoch + 1),
            )
        self._check()
        self._check_weights()

    def get_state(self) -> dict[str, Any]:
        """Raises an error before a checkpoint if weights are not finite; returns no state."""
        self._check()
        self._check_weights()
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because this callback has no state."""

    def _check(self) -> None:
        """Raises the error for a loss that was not finite, if there was one."""
        if self._found is None:
            return
        epoch, batch, loss = self._found
        state = "The weights are still finite."
        if find_not_finite(self.model.trainable_variables):
            state = "The weights are not finite: continue from a checkpoint."
        first = "" if batch == epoch == 0 else ", or the update before it"
        raise TrainingDivergedError(
            f"The loss is {loss:g} from batch {batch + 1} of epoch {epoch + 1} on, and the "
            f"training stopped. The cause is that batch{first}. Look at the inputs of the batch, "
            "and at its labels: a label outside the classes has this effect, and a binary label "
            "that is not 0 or 1. If the loss grew before, lower the learning rate or clip the "
            "gradients (gradient_clip=). guard='stop' names the cause, guard='skip' skips such "
            f"batches. {state}"
        )

    def _check_weights(self) -> None:
        if self._is_checked:
            return
        self._is_checked = True
        model = self.model  # On JAX this reads the variables back.
        not_finite = find_not_finite(model.trainable_variables)
        if not_finite:
            raise TrainingDivergedError(
                f"Weights of {model.name!r} are not finite, such as {not_finite[0]!r}, although "
                f"the loss is finite: a batch up to {self._newest + 1} of epoch {self._epoch + 1} "
                "had NaN in it, or gradients that overflow. guard='stop' names the batch, "
                "guard='skip' skips such batches. Continue from a checkpoint."
            )


def _has(callbacks: list[keras.callbacks.Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
