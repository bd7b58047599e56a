"""Measures the speed, memory and learning rate of a training.

Callbacks that show or log them hold one `TrainingPace` each. It reads values from the device only
before a step and about once a second, because reading waits for the current step.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.trainers import count_samples, read_learning_rate

_STATUS = Path("/proc/self/statm")
_SECONDS_BETWEEN_READINGS = 1.0
_SECONDS_BETWEEN_MARKS = 0.1
_MARKS = 50
"""The number of latest marks (times with a step count). Their pace is that of five seconds."""


class TrainingPace:
    """The speed, memory and learning rate of a training, measured step by step.

    Call `before_step` in `on_train_batch_begin`, in the training thread, and `after_step` in
    `on_train_batch_end`, in any thread, one call at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.samples_per_step: float | None = None
        self.learning_rate: float | None = None
        self.memory: dict[str, int] = {}
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Discards the measurements of the last epoch's steps.

        The last readings stay until there are new ones.
        """
        self.done = 0  # Steps of the epoch.
        self.began_at = self.clock()
        self._last = self.began_at
        # All paces exclude the first step, which may have waited for a compilation.
        self._first: tuple[float, int] | None = None
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self._next_mark = 0.0
        self._next_reading: float | None = None

    def before_step(self, model: keras.Model, batch: int) -> None:
        """Reads samples per step, learning rate and memory, at most once a second.

        Args:
            model: The model, from `trained_model` in a callback: on JAX, `self.model` would
                copy the training state back.
            batch: The number of the step in the epoch.
        """
        if batch == 0:
            return  # There is no finished step yet.
        now = self.clock()
        if self._next_reading is None or now >= self._next_reading:
            self._next_reading = now + _SECONDS_BETWEEN_READINGS
            samples = count_samples(model)
            self.samples_per_step = None if samples is None else samples / batch
            self.learning_rate = read_learning_rate(model)
            self.memory = _read_memory()

    def after_step(self, batch: int) -> float:
        """Counts a step, unless Keras reports it after later steps; returns the time."""
        now = self.clock()
        if batch >= self.done:
            self.done, self._last = batch + 1, now
            if now >= self._next_mark:
                self._marks.append((now, self.done))
                self._next_mark = now + _SECONDS_BETWEEN_MARKS
                self._first = self._first or self._marks[0]
        return now

    def steps_per_second(self, *, of_epoch: bool = False) -> float | None:
        """Returns the steps per second, lately or in the epoch; `None` before the second step."""
        start = self._first if of_epoch else next(iter(self._marks), None)
        if start is None or self._last <= start[0]:
            return None
        return (self.done - start[1]) / (self._last - start[0])

    def figures(self, *, of_epoch: bool = False) -> dict[str, float]:
        """Returns the current speed, learning rate and memory use, keyed by their log names."""
        pace = self.steps_per_second(of_epoch=of_epoch)
        figures: dict[str, float] = {}
        if pace is not None:
            figures["steps_per_second"] = pace
            if self.samples_per_step is not None:
                figures["samples_per_second"] = pace * self.samples_per_step
        if self.learning_rate is not None:
            figures["learning_rate"] = self.learning_rate
        return {**figures, **self.memory}


def _read_memory() -> dict[str, int]:
    """Returns the number of bytes that the process and the accelerator use.

    Returns:
        A dict with `process_memory_bytes`, the resident memory (on macOS its peak; on Windows
        missing), and `device_memory_bytes` if the framework's allocator counts them.
    """
    memory = {}
    process = _read_process()
    if process is not None:
        memory["process_memory_bytes"] = process
    device = backend.current().devices.read_device_memory()
    if device is not None:
        memory["device_memory_bytes"] = device["in_use"]
    return memory


def _read_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    try:
        return int(_STATUS.read_bytes().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
