"""Clearer errors of a training: notes of the batch, and a StopIteration from a callback."""

import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.training.data.position_data import no_data_error
from keras_deepseek.training.step.compiled_step import CompiledStep
from keras_deepseek.training.step.loss.batch_loss import missing_loss_error

_OWN = "keras_deepseek."
_DETACHED = (
    "If a callback read a weight: on JAX, Keras keeps the values of variables elsewhere between "
    "two steps. Read them from the callback's `self.model`, which brings them back, and not from a "
    "model or optimizer of the script."
)


class PositionTracker(keras.callbacks.Callback):
    """Keeps track of a training's position: epoch, batch, or validation."""

    def __init__(self, step: CompiledStep) -> None:
        super().__init__()
        self._step = step
        self._epoch = 0
        self._num_before_epoch = 0  # Steps; below zero in an epoch that was resumed.
        self._is_validating = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._num_before_epoch = self._step.num_steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        # A resumed epoch does not begin at batch 0.
        self._num_before_epoch = self._step.num_steps - batch

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._is_validating = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._is_validating = False

    def describe(self) -> str | None:
        """Describes the position in the training as a text, or `None` before the first batch."""
        done = self._step.num_steps - self._num_before_epoch
        epoch = f"of epoch {self._epoch + 1}"
        if self._is_validating:
            return f"in the validation after batch {done} {epoch}"
        if self._step.is_running:
            several = self._step.steps_per_execution
            batches = f"batch {done + 1}"
            return f"with {batches if several == 1 else f'{batches} to {done + several}'} {epoch}"
        if not self._step.num_steps:
            return None
        return f"after batch {done} {epoch}" if done else f"before batch 1 {epoch}"


@contextmanager
def error_notes(
    model: keras.Model, step: CompiledStep, position: PositionTracker
) -> Iterator[None]:
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
            if not step.num_steps:
                raise no_data_error() from error  # Keras on JAX raises it if there is no batch.
            raise InvalidInputError(
                f"The training data raised StopIteration {where}, before the end of the epoch. "
                "Yield as many batches as the data's length says."
            ) from error
        if where is not None:
            error.add_note(f"The error came {where}, both counted from 1.")
        if keras.backend.backend() == "jax" and "'NoneType' object is not callable" in str(error):
            error.add_note(_DETACHED)
        raise


@contextmanager
def missing_loss_errors(model: keras.Model) -> Iterator[None]:
    """Context manager that replaces Keras's error for a missing loss by a clearer one."""
    try:
        yield
    except ValueError as error:
        if "No loss to compute" in str(error):
            raise missing_loss_error(model) from error
        raise


def add_stop_iteration_check(callbacks: list[keras.callbacks.Callback]) -> None:
    """Adds a pair of callbacks, first and last, that count calls of batch hooks.

    If a callback between them raises StopIteration, Keras ends the epoch, and the last callback
    misses a call. At the end of the data, neither is called. Our own callbacks need no check.
    """
    callback_types = [type(callback) for callback in callbacks]
    names = [
        callback_type.__name__
        for callback_type in callback_types
        if not callback_type.__module__.startswith(_OWN)
    ]
    if names:
        last = _CallCounter()
        callbacks.insert(0, _CallComparer(last, names))
        callbacks.append(last)


def find_callback_hook(error: BaseException | None) -> str | None:
    """Returns the user's callback and hook that raised an error, as in `"Stop.on_epoch_end"`."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            callback = frame.f_locals.get("self")
            is_own = type(callback).__module__.startswith((_OWN, "keras."))
            if isinstance(callback, keras.callbacks.Callback) and not is_own:
                return f"{type(callback).__name__}.{frame.f_code.co_name}"
        error = error.__cause__
    return None


def callback_stop_error(what: str) -> RuntimeError:
    """Returns the error for a callback that raised StopIteration."""
    return RuntimeError(
        f"{what} raised StopIteration. Keras takes it for the end of the data. To end a training, "
        "set self.model.stop_training = True."
    )


class _CallCounter(keras.callbacks.Callback):
    """A callback that counts the calls of its batch hooks."""

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # Keras may call hooks from several threads.
        self.number = 0

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because the count starts with each training."""

    def _count(self) -> None:
        with self._lock:
            self.number += 1

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._count()


class _CallComparer(_CallCounter):
    """The callback that compares its call count with that of the last callback."""

    def __init__(self, last: _CallCounter, names: Sequence[str]) -> None:
        super().__init__()
        self._last = last
        self._names = names

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.number = self._last.number = 0

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self.compare()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.compare()

    def compare(self) -> None:
        """Raises an error if the last callback got fewer calls than this first one."""
        if self.number != self._last.number:
            names = ", ".join(self._names)
            what = names if len(self._names) == 1 else f"One of the callbacks {names}"
            raise callback_stop_error(f"{what}, in a batch hook,")
