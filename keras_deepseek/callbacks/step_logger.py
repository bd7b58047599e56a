"""What the callbacks share that write the logs of a training down, step by step.

On JAX and PyTorch Keras hands the logs of a step to callbacks in a thread, so that the next step
need not wait for them; steps may come late and out of order. Here they are put in order, numbered
from the start of the run, and written many at once.
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

_SHARE_OF_TIME = 0.02  # That writing may take, up to `_longest_wait`.


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

    A subclass has `_open`, `_write`, `_close`; and `_last_step` and `_discard_after` where what was
    written can be read again. Steps are counted from 1, from the start of the run: a second `fit`,
    a model that was loaded with its optimizer and a training that is resumed from a checkpoint go
    on counting. What is waiting to be written goes out before a checkpoint is taken, at an epoch's
    end, and before Python ends.

    Args:
        every: integer. Write every so many steps; 0 for epochs alone. Defaults to `1`.
        resume: boolean. Whether the training goes on with what was written before, also where it
            makes its first steps anew. Defaults to `False`.

    Raises:
        InvalidInputError: `every` is negative. When a training starts at step 0 and `resume` is
            `False`: there is an earlier run.
    """

    async_safe = True  # Keras then reads the logs without making the next step wait.
    _longest_wait = 1.0  # Seconds between two writes.

    def __init__(self, *, every: int = 1, resume: bool = False) -> None:
        super().__init__()
        self.every = check_integer("every", every, least=0)
        self.resume = resume
        self._lock = threading.Lock()
        self._is_open = False
        self._logged_model: keras.Model | None = None
        self._step = self._before_epoch = self._epoch = 0
        self._begins_epoch = False
        self._begun: deque[int] = deque()  # Batches whose end has not been told yet.
        self._early: list[tuple[int, dict[str, float]]] = []  # Ends that came before others.
        self._rows: list[Row] = []
        self._next_write = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens what is written to, and finds the step that the run is at."""
        self.close()  # Of a training that an error ended.
        step = count_train_steps(self.model)
        if self._logged_model is self.model:
            step = max(step, self._step)  # Steps that made no update count too.
        self._logged_model = self.model
        self._step = step
        self._open()
        self._is_open = True
        atexit.register(self.close)
        last = self._last_step()
        if step == 0 and not self.resume and last is not None:
            self.close()
            raise InvalidInputError(self._earlier_run_message())
        if last is not None and last > step:
            self._discard_after(step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins to count the steps of an epoch."""
        self._epoch = epoch
        self._begins_epoch = True
        self._begun.clear()
        self._early.clear()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers which step comes next."""
        with self._lock:
            if self._begins_epoch:  # Maybe in its middle, where a training is resumed.
                self._begins_epoch = False
                self._before_epoch = self._step - batch
            self._begun.append(batch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of the step, or of those that waited for it."""
        with self._lock:
            heapq.heappush(self._early, (batch, dict(logs or {})))
            # The first that was begun has ended where no other was begun before its end.
            while self._early and (len(self._begun) < 2 or self._begun[1] > self._early[0][0]):  # noqa: PLR2004
                if self._begun:
                    self._begun.popleft()
                self._add(*heapq.heappop(self._early))
            if time.monotonic() >= self._next_write:
                self._flush()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the logs of the epoch, validation among them."""
        with self._lock:
            self._rows.append(
                Row(self._step, epoch, dict(logs or {}), time.time(), ends_epoch=True)
            )
            self._flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes what is left, and closes."""
        self.close()

    def close(self) -> None:
        """Writes what is left, and closes: also for a training that an error has ended."""
        with self._lock:
            if self._is_open:
                atexit.unregister(self.close)
                try:
                    self._flush()
                finally:
                    self._is_open = False
                    self._close()

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it; all that was logged is written by then."""
        with self._lock:
            self._flush()
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the step of a checkpoint; what was written of later ones is discarded."""
        with self._lock:
            self._step = state["step"]
            self._rows.clear()
            if self._is_open and (self._last_step() or 0) > self._step:
                self._discard_after(self._step)

    def _open(self) -> None:
        """Opens what is written to."""
        raise NotImplementedError

    def _write(self, rows: Sequence[Row]) -> None:
        """Writes rows, by rising step, so that they outlive the process."""
        raise NotImplementedError

    def _close(self) -> None:
        """Closes what was opened."""
        raise NotImplementedError

    def _last_step(self) -> int | None:
        """Returns the last step that was written, in this process or before; `None` for none."""
        return None

    def _discard_after(self, step: int) -> None:
        """Discards what was written of later steps."""

    def _earlier_run_message(self) -> str:
        """Says that there is an earlier run, and what to do."""
        raise NotImplementedError

    def _add(self, batch: int, logs: dict[str, float]) -> None:
        before, self._step = self._step, self._before_epoch + batch + 1
        if self.every and self._step // self.every > before // self.every:
            self._rows.append(Row(self._step, self._epoch, logs, time.time(), ends_epoch=False))

    def _flush(self) -> None:
        if self._rows and self._is_open:
            started = time.monotonic()
            self._write(self._rows)
            self._rows = []
            took = time.monotonic() - started
            self._next_write = started + min(took / _SHARE_OF_TIME, self._longest_wait)


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Returns those of the logs that are numbers."""
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float | np.number) or getattr(value, "shape", None) == ()
    }
