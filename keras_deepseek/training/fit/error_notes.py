"""Adds notes to errors of a training, which name the epoch and the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.training.data.position_data import no_data_error
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.fit.stop_iteration_check import (
    callback_stop_error,
    find_callback_hook,
)
from keras_deepseek.training.step.loss.missing_loss import missing_loss_errors


class PositionTracker(keras.callbacks.Callback):
    """Keeps track of a training's position: epoch, batch, or validation."""

    def __init__(self, plan: StepPlan) -> None:
        super().__init__()
        self._plan = plan
        self._epoch = 0
        self._num_before_epoch = 0  # Steps; below zero in an epoch that was resumed.
        self._is_validating = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._num_before_epoch = self._plan.num_steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # A resumed epoch does not begin at batch 0.
        self._num_before_epoch = self._plan.num_steps - batch

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._is_validating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._is_validating = False

    def describe(self) -> str | None:
        """Describes the position in the training as a text, or `None` before the first batch."""
        done = self._plan.num_steps - self._num_before_epoch
        epoch = f"of epoch {self._epoch + 1}"
        if self._is_validating:
            return f"in the validation after batch {done} {epoch}"
        if self._plan.is_running:
            several = self._plan.steps_per_execution
            batches = f"batch {done + 1}"
            return f"with {batches if several == 1 else f'{batches} to {done + several}'} {epoch}"
        if not self._plan.num_steps:
            return None
        return f"after batch {done} {epoch}" if done else f"before batch 1 {epoch}"


@contextmanager
def error_notes(model: keras.Model, plan: StepPlan, position: PositionTracker) -> Iterator[None]:
    """Context manager that adds the batch to errors of a training, or makes them clearer."""
    try:
        with missing_loss_errors(model):
            yield
    except TrainingDivergedError:  # It names its batch, which is an earlier one.
        raise
    except Exception as error:
        # In the generator of `Trainer.steps`, Python makes a StopIteration a RuntimeError.
        is_stop = isinstance(error, StopIteration) or isinstance(error.__cause__, StopIteration)
        if is_stop and (hook := find_callback_hook(error)):
            # A RuntimeError from a StopIteration would become that StopIteration again (PEP 479).
            raise callback_stop_error(hook)  # noqa: B904
        where = position.describe()
        if isinstance(error, StopIteration):
            if not plan.num_steps:
                raise no_data_error() from error  # Keras on JAX raises it if there is no batch.
            raise InvalidInputError(
                f"The training data raised StopIteration {where}, before the end of the epoch. "
                "Yield as many batches as the data's length says."
            ) from error
        if where is not None:
            error.add_note(f"The error came {where}, both counted from 1.")
        raise
