"""The callbacks of a training, while `Trainer.fit` lasts."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from keras_deepseek.callbacks.progress_display import ProgressDisplay
from keras_deepseek.callbacks.step_logger import StepLogger
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.fit.stop_iteration_check import StopIterationCheck

Callbacks: TypeAlias = keras.callbacks.Callback | Iterable[keras.callbacks.Callback] | None

_TRACK_BEST = (keras.callbacks.EarlyStopping, keras.callbacks.ModelCheckpoint)
"""Callbacks to which the first number is the best so far, whatever it is."""

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
    """Returns the callbacks of an argument that may be one, several or none.

    Args:
        callbacks: Keras callback, iterable of them, or `None`.

    Raises:
        InvalidInputError: One is no Keras callback.
    """
    if callbacks is None:
        return []
    several = callbacks if isinstance(callbacks, Iterable) else [callbacks]
    return [check_callback(callback) for callback in several]


def check_callback(callback: Any) -> keras.callbacks.Callback:
    """Returns a Keras callback, or says what was received in its place.

    Args:
        callback: What was given.

    Raises:
        InvalidInputError: It is none.
    """
    if not isinstance(callback, keras.callbacks.Callback):
        raise InvalidInputError(
            f"Expected a keras.callbacks.Callback; received {type(callback).__name__}: "
            f"{callback!r}."
        )
    return callback


def without_writers(callbacks: list[keras.callbacks.Callback]) -> list[keras.callbacks.Callback]:
    """Returns callbacks without those that show or write what rank 0 does.

    Args:
        callbacks: list of Keras callbacks.
    """
    return [callback for callback in callbacks if not isinstance(callback, _WRITERS)]


@contextmanager
def prepared_callbacks(
    callbacks: list[keras.callbacks.Callback], verbose: str | int, *, resume: bool
) -> Iterator[str | int]:
    """Yields the `verbose` for Keras, and afterwards closes what has to be, an error or not.

    Args:
        callbacks: list of Keras callbacks. A `ProgressDisplay` is added where it has no display.
            Those that write a run down go on with it where the training is resumed.
        verbose: string or integer, as `Trainer.fit` takes it.
        resume: boolean. Whether the training is resumed.

    Raises:
        InvalidInputError: `verbose` is none of those that there are.
    """
    if verbose not in _STYLES:
        raise InvalidInputError(f'`verbose` is "auto", 0, 1 or 2; received {verbose!r}.')
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
    watch = StopIterationCheck(callbacks)
    callbacks.insert(0, watch.first)
    callbacks.append(watch.last)
    try:
        yield for_keras
    except StopIteration:  # Keras on PyTorch lets it through.
        watch.check()
        raise
    finally:  # Keras does not tell its callbacks that a training has ended in an error.
        with contextlib.ExitStack() as stack:  # Each of them, also where another can't be.
            for callback in callbacks:
                if isinstance(callback, ProgressDisplay | StepLogger):
                    stack.callback(callback.close)
            for logger, before in loggers.items():
                logger.resume = before


class _ResetNaNBest(keras.callbacks.Callback):
    """Lets no callback keep a NaN for the best that there is: no later number is less than that.

    What it has then is worse than any number, so that a NaN is no improvement and patience ends.
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
