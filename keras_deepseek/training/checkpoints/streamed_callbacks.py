"""What Keras's training loop reports to in a training on a stream of batches.

It stands between `model.fit` and the callbacks. Keras is told no number of batches: here the epochs
of the stream begin and end, and those of Keras with them.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import keras

from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.processes.processes import Processes


class StreamedCallbacks(keras.callbacks.CallbackList):
    """The callbacks of a training on `PositionedData`.

    Args:
        callbacks: iterable of Keras callbacks.
        model: `keras.Model`, built and compiled.
        data: `PositionedData` that the model is trained on.
        epochs: integer. The last epoch, counted from 1.
        verbose: integer or string, as `model.fit` takes it.
        processes: `Processes` that train together: where one stops, all do.
    """

    def __init__(
        self,
        callbacks: Iterable[keras.callbacks.Callback],
        *,
        model: keras.Model,
        data: PositionedData,
        epochs: int,
        verbose: int | str,
        processes: Processes,
    ) -> None:
        super().__init__(list(callbacks), add_history=True, add_progbar=verbose != 0)
        self._trained = model  # Not `self.model`, which on JAX ends the step's own state.
        self._data = data
        self._epochs = epochs
        self._verbose = verbose
        self._processes = processes
        self._first = 0  # The batches of this epoch that an earlier process made.
        self._done = 0  # Those made by now.
        self._logs: dict[str, Any] = {}  # Of the last of them.
        self._ends_epoch = False  # Whether the loop was stopped because the epoch is over.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._introduce()
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._done = self._first
        self._data.stream.begin_epoch(self._first)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_begin(batch + self._first, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps made, and ends the epoch where the data end."""
        done = self._first + batch + 1
        length = self._data.stream.epoch_length
        if length is not None:
            done = min(done, length)  # The last of `steps_per_execution` is cut short.
        super().on_train_batch_end(done - 1, logs)
        self._done = done
        self._logs = logs or {}
        self._agree(self._processes.agree(self._wishes()))
        if done == length and not self._trained.stop_training:
            self._ends_epoch = self._trained.stop_training = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.go_on()
        super().on_test_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Lets the training go on after the epoch's end, where there are data to go on with."""
        self.go_on()
        super().on_epoch_end(epoch, logs)
        self._agree(self._processes.agree_now(self._wishes()))
        self._first = self._done = 0
        stream = self._data.stream
        stream.end_epoch()
        if stream.is_epoch_short:
            _warn(
                f"Epoch {epoch + 1} ended after {stream.epoch_length} batches, where the data end, "
                f"and steps_per_epoch is {stream.steps_per_epoch}."
            )
        is_last = self._trained.stop_training or epoch + 1 >= self._epochs
        if not is_last and not stream.can_go_on():
            _warn(
                f"The generator has ended in epoch {epoch + 1} of {self._epochs}, and the training "
                "with it. Let it go on for ever and give steps_per_epoch, or give a PyDataset."
            )
            self._trained.stop_training = True

    @property
    def num_until_pause(self) -> int | None:
        """How many steps may be begun before all of them must be made; `None` for any number."""
        return None

    def go_on(self) -> None:
        """Takes back that the training is to stop, where that has only ended an epoch."""
        if self._ends_epoch:
            self._ends_epoch = self._trained.stop_training = False

    def _wishes(self) -> list[bool]:
        """Returns whether this process wishes to stop, first of all, and what else it wishes."""
        return [bool(self._trained.stop_training)]

    def _agree(self, agreed: list[bool]) -> None:
        """Does what the processes have agreed on, each of them after the same step."""
        self._trained.stop_training = agreed[0]

    def leave(self) -> None:
        """Is told that the loop around the steps was left before its end."""

    def _introduce(self) -> None:
        """Tells the callbacks what they are called for."""
        self.set_model(self._trained)
        steps = self._data.stream.steps
        self.set_params({"verbose": self._verbose, "epochs": self._epochs, "steps": steps})


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
