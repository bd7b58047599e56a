"""Base class of callbacks that write logs step by step.

On JAX and PyTorch Keras passes the logs of a step to callbacks in a thread, so that the next step
need not wait; steps may arrive late and out of order. This class orders them, numbers them from the
start of the run, and writes them in groups.
"""

import atexit
import heapq
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_deepseek.backend.keras_private.trainers import count_train_steps
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError

_SHARE_OF_TIME = 0.003  # Writing may take this share of the time, or once a `_longest_wait`.


class Row(NamedTuple):
    """The logs of a step, or of an epoch after its last step."""

    step: int
    epoch: int
    logs: dict[str, Any]
    time: float
    """Seconds since 1970."""
    ends_epoch: bool


class StepLogger(keras.callbacks.Callback):
    """Writes the logs of steps and epochs, in order and each once.

    A subclass has `_open`, `_write` and `_close`; and `_last_step` and `_discard_after` if its
    output can be read again. Steps are counted from 1, from the start of the run: a second `fit`, a
    model loaded with its optimizer, and a training resumed from a checkpoint continue the count.
    Waiting logs are written before a checkpoint is taken, at the end of an epoch, and before Python
    ends.
    """

    async_safe = True  # Lets Keras read the logs without delaying the next step.
    _longest_wait = 1.0  # Seconds between two writes.
    _output = ""  # The path of the output, for errors.

    def __init__(self, *, every: int = 1, resume: bool = False) -> None:
        super().__init__()
        self.every = check_integer("every", every, minimum=0)
        self.resume = resume
        self._lock = threading.Lock()
        self._is_open = False
        self._logged_model: keras.Model | None = None
        self._step = self._before_epoch = self._epoch = 0
        self._begins_epoch = False
        self._begun: deque[int] = deque()  # Batches whose end was not reported yet.
        self._early: list[tuple[int, dict[str, float]]] = []  # Ends that were reported too early.
        self._rows: list[Row] = []
        self._next_write = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the output, and finds the run's current step."""
        self.close()  # An error may have ended the last training.
        step = count_train_steps(self.model)
        if self._logged_model is self.model:
            step = max(step, self._step)  # Steps without an update count too.
        self._logged_model = self.model
        self._step = step
        self._open()
        self._is_open = True
        atexit.register(self.close)
        last = self._last_step()
        if step == 0 and not self.resume and last is not None:
            self.close()
            raise InvalidInputError(
                f"{self._output!r} holds an earlier run, but this training starts from the "
                "beginning. Name another file or folder, remove that one, or pass resume=True."
            )
        if last is not None and last > step:
            self._discard_after(step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts counting the steps of an epoch."""
        self._epoch = epoch
        self._begins_epoch = True
        self._begun.clear()
        self._early.clear()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the step that begins."""
        with self._lock:
            if self._begins_epoch:  # A resumed training may begin in the middle of the epoch.
                self._begins_epoch = False
                self._before_epoch = self._step - batch
            self._begun.append(batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of the step, and of steps that waited for it."""
        with self._lock:
            heapq.heappush(self._early, (batch, dict(logs or {})))
            # The earliest reported end is next, unless an earlier batch has not ended yet. With
            # `steps_per_execution`, an end has the number of the last step of its execution.
            while self._early and (len(self._begun) < 2 or self._begun[1] > self._early[0][0]):  # noqa: PLR2004
                if self._begun:
                    self._begun.popleft()
                self._add(*heapq.heappop(self._early))
            if time.monotonic() >= self._next_write:
                self._flush()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of the epoch, including validation."""
        with self._lock:
            self._rows.append(
                Row(self._step, epoch, dict(logs or {}), time.time(), ends_epoch=True)
            )
            self._flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the waiting logs, and closes the output."""
        self.close()

    def close(self) -> None:
        """Writes the waiting logs and closes the output, also after an error ended the training."""
        with self._lock:
            if self._is_open:
                atexit.unregister(self.close)
                try:
                    self._flush()
                finally:
                    self._is_open = False
                    self._close()

    def get_state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint, after writing all logs so far."""
        with self._lock:
            self._flush()
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after the step of a checkpoint, and discards the logs of later steps."""
        with self._lock:
            self._step = state["step"]
            self._rows.clear()
            if self._is_open and (self._last_step() or 0) > self._step:
                self._discard_after(self._step)

    def _open(self) -> None:
        raise NotImplementedError

    def _write(self, rows: Sequence[Row]) -> None:
        """Writes rows, in the order of steps, so that they outlive the process."""
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _last_step(self) -> int | None:
        """Returns the last step in the output, also from earlier processes; `None` for none."""
        return None

    def _discard_after(self, step: int) -> None:
        """Discards the logs of later steps."""

    def _add(self, batch: int, logs: dict[str, float]) -> None:
        """Adds the logs of a batch to the waiting rows, if an entry is due."""
        previous_step, self._step = self._step, self._before_epoch + batch + 1
        if self.every and self._step // self.every > previous_step // self.every:
            self._rows.append(Row(self._step, self._epoch, logs, time.time(), ends_epoch=False))

    def _flush(self) -> None:
        if self._rows and self._is_open:
            started = time.monotonic()
            self._write(self._rows)
            self._rows = []
            took = time.monotonic() - started
            self._next_write = started + min(took / _SHARE_OF_TIME, self._longest_wait)


def numeric_logs(logs: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values of a step's logs that are numbers, as floats by name."""
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float | np.number) or getattr(value, "shape", None) == ()
    }
