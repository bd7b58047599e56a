"""A display of the progress of a training."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from keras_deepseek.backend.keras_private.callbacks import trained_model
from keras_deepseek.callbacks.progress_screen import PlainScreen, Screen, choose_screen
from keras_deepseek.callbacks.training_pace import TrainingPace
from keras_deepseek.errors import InvalidInputError, unknown_name_message

_SHOWN_APART = (
    "learning_rate",
    "steps_per_second",
    "samples_per_second",
    "tokens_per_second",
    "process_memory_bytes",
    "device_memory_bytes",
    "model_flops_utilization",
)
_RATES = ("tokens", "samples", "steps")


def describe(pace: TrainingPace, logs: Mapping[str, float], *, of_epoch: bool = False) -> list[str]:
    """Returns the texts of the progress display for pace and metrics, the most important first.

    Figures that a callback added to `logs`, such as tokens a second, replace those of the pace.
    With `of_epoch`, the pace is that of the whole epoch.
    """
    figures = {**pace.figures(of_epoch=of_epoch), **logs}
    parts = []
    for unit in _RATES:
        if f"{unit}_per_second" in figures:
            parts.append(f"{count(figures[f'{unit}_per_second'])} {unit}/s")
            break
    if "model_flops_utilization" in figures:
        parts.append(f"MFU: {figures['model_flops_utilization']:.1%}")
    parts += [
        f"{name}: {number(value)}" for name, value in logs.items() if name not in _SHOWN_APART
    ]
    if "learning_rate" in figures:
        parts.append(f"learning_rate: {number(figures['learning_rate'])}")
    for name, words in (("process_memory_bytes", "memory"), ("device_memory_bytes", "device")):
        if name in figures:
            parts.append(f"{words}: {figures[name] / 2**30:.2f} GiB")
    return parts


def number(value: object) -> str:
    """Formats a metric's value with four digits; returns other values as text."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def count(value: float) -> str:
    """Formats a large number with three digits and a unit letter, such as `1.25M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Formats a number of seconds as `12s`, `3:04` or `1:02:03`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, second = divmod(round(seconds), 60)
    if not minutes:
        return f"{second}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


_STYLES = ("auto", "lines")
_LINES_AN_EPOCH = 4
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_UNTIL_LINE = (10.0, 60.0, 360.0)
"""The times of the lines within an epoch of unknown length."""


class ProgressDisplay(keras.callbacks.Callback):
    """Shows the progress of a training: step, speed, logs, learning rate and memory.

    Choose it over the progress bar of `model.fit`. `Trainer.fit` uses it by default; with a bare
    `model.fit` pass `verbose=0`. In a terminal or a notebook it updates one line, at most ten times
    a second. Elsewhere it prints plain lines: at most four an epoch, at least ten seconds apart. At
    the end of an epoch a line with the logs, including validation, stays.

    Samples a second are counted by Keras's mean loss, so any kind of data works; a model whose own
    `train_step` does not update that mean shows steps a second. Tokens a second and utilization of
    the device (MFU) come from a `ThroughputMeter` before it in the list of callbacks. The speed is
    that of the last five seconds; on the epoch's line, that of the epoch without its first step.

    Logs are read in Keras's own thread once they are numbers, so the display never waits for the
    device. The learning rate and the number of samples are read once a second.

    Args:
        style: `"auto"`, or `"lines"` for plain lines anywhere. Defaults to `"auto"`.
        clock: Function that returns the time in seconds. Defaults to `time.perf_counter`.

    Raises:
        InvalidInputError: `style` is unknown.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> display = ProgressDisplay(style="lines")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(x, y, verbose=0, callbacks=[display])  # doctest: +ELLIPSIS
    Epoch 1/1 1/1 ...
    """

    async_safe = True  # Lets Keras read the logs without delaying the next step.

    def __init__(
        self,
        style: Literal["auto", "lines"] = "auto",
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        if style not in _STYLES:
            raise InvalidInputError(unknown_name_message("style", style, _STYLES))
        self.style = style
        self._clock = clock
        self._pace = TrainingPace(clock)
        self._lock = threading.Lock()
        self._screen: Screen = PlainScreen()
        self._is_training = False
        self._epoch = 0
        self._steps: int | None = None
        self._next_update = self._next_line = 0.0
        self._lines_left = 0
        self._validation_began_at = 0.0
        self._validation_seconds = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Chooses a screen for the current output."""
        self.close()
        self._screen = choose_screen(self.style)
        self._pace = TrainingPace(self._clock)
        self._is_training = True
        self._steps = None
        self._validation_seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the display line that shows the progress of the epoch."""
        self._epoch = epoch
        # If Keras does not know the length in advance, that of the last epoch is used.
        self._steps = (self.params or {}).get("steps") or self._pace.done or self._steps
        self._pace.begin_epoch()
        self._next_update = self._pace.began_at
        self._next_line = self._pace.began_at + _SECONDS_BETWEEN_LINES
        self._lines_left = _LINES_AN_EPOCH - 1

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads values that are only available before a step."""
        self._pace.before_step(trained_model(self), batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows the step, if an update is due."""
        with self._lock:  # On some backends Keras calls this from several threads.
            now = self._pace.after_step(batch)
            between = self._screen.seconds_between_updates
            if between is not None:  # The screen can overwrite a line.
                if now >= self._next_update:
                    self._next_update = now + between
                    self._screen.update(*self._status(logs or {}))
            elif now >= self._next_line and self._is_line_due():
                self._next_line = now + _SECONDS_BETWEEN_LINES
                self._lines_left -= 1
                head, _, parts = self._status(logs or {})
                self._screen.write("  ".join([head, *parts]))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Shows that the validation has begun."""
        self._validation_began_at = self._pace.clock()
        if self._is_training:
            with self._lock:
                self._next_update = math.inf  # Ignores steps that Keras reports late.
                self._screen.update(f"{self._head()} validating", None, [])

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remembers the duration of the validation."""
        self._validation_seconds = self._pace.clock() - self._validation_began_at

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the line of the epoch, including validation."""
        with self._lock:
            self._steps = self._pace.done
            took = duration(self._pace.clock() - self._pace.began_at)
            parts = describe(self._pace, logs or {}, of_epoch=True)
            self._screen.write("  ".join([self._head(), took, *parts]))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Removes the display."""
        self.close()

    def close(self) -> None:
        """Removes the line of the step, also after an error ended the training."""
        self._is_training = False
        self._screen.close()

    def _is_line_due(self) -> bool:
        """Returns true after each quarter of the epoch.

        If the epoch's length is unknown, it returns true at growing intervals.
        """
        if self._lines_left <= 0:
            return False
        if self._steps is None:
            num_lines = _LINES_AN_EPOCH - 1 - self._lines_left
            return self._pace.clock() >= self._pace.began_at + _SECONDS_UNTIL_LINE[num_lines]
        return self._pace.done >= self._steps * (1 - self._lines_left / _LINES_AN_EPOCH)

    def _head(self) -> str:
        epochs = (self.params or {}).get("epochs") or 1
        steps = "" if self._steps is None else f"/{self._steps}"
        return f"Epoch {self._epoch + 1}/{epochs} {self._pace.done}{steps}"

    def _status(self, logs: dict[str, Any]) -> tuple[str, float | None, list[str]]:
        """Returns the arguments of `Screen.update`."""
        parts = describe(self._pace, logs)
        if self._steps is None:
            return self._head(), None, parts
        pace = self._pace.steps_per_second()
        if pace:
            epoch_seconds = max(self._steps - self._pace.done, 0) / pace
            epochs = ((self.params or {}).get("epochs") or 1) - self._epoch  # With this one.
            time_left = f"ETA {duration(epoch_seconds)}"
            if epochs > 1:
                whole_epoch = self._steps / pace + self._validation_seconds
                all_epochs = epoch_seconds + (epochs - 1) * whole_epoch + self._validation_seconds
                time_left += f", {duration(all_epochs)} in all"
            parts.insert(0, time_left)
        return self._head(), self._pace.done / self._steps, parts
