"""The callbacks of one training: those of the user, and those that `Trainer.fit` adds."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.step_logger import StepLogger
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.fit.stop_iteration_check import add_stop_iteration_check

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
    """Context manager that adds the trainer's callbacks to a list, and yields `verbose`.

    Afterwards it closes displays and loggers, also after an error.

    A `ProgressDisplay` is added if the list has no display. If the training is resumed, its loggers
    continue their files.
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


def _has(callbacks: list[keras.callbacks.Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
