"""Training on a stream of batches that knows its position, in place of Keras's data reading.

Keras does not know the number of batches: `StreamedCallbacks`, which stands between `model.fit` and
the callbacks, begins and ends the epochs of the stream, and Keras's epochs with them.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.callbacks import GroupedCallbackList, finish_callbacks
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.errors import NotSupportedError
from keras_deepseek.training.data.position_data import position_data
from keras_deepseek.training.step.gradients.optimizer_parts import common_variables
from keras_deepseek.training.step.training_step import build_for_step


class StreamedCallbacks(GroupedCallbackList):
    """The callbacks of a training on `PositionedData`.

    Args:
        epochs: integer. The last epoch, counted from 1.
        processes: `Processes` that train together. If one stops, all stop after the same step.
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
        self._trained = model  # `self.model` would read all variables back on JAX.
        self._data = data
        self._epochs = epochs
        self._verbose = verbose
        self._processes = processes
        self._num_resumed = 0  # The batches of this epoch that were trained before it was resumed.
        self._num_done = 0  # The batches of this epoch that are trained by now.
        self._logs: dict[str, Any] = {}  # Of the last batch.
        self._ends_epoch = False  # `stop_training` was set only to end the epoch.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._set_model_and_params()
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._num_done = self._num_resumed
        self._data.stream.begin_epoch(self._num_resumed)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_begin(batch + self._num_resumed, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps, and ends the epoch at the end of the data."""
        done = self._num_resumed + batch + 1
        length = self._data.stream.epoch_length
        if length is not None:
            done = min(done, length)  # The last execution may have fewer steps.
        super().on_train_batch_end(done - 1, logs)
        self._num_done = done
        self._logs = logs or {}
        self._apply_requests(self._processes.all_reduce_flags(self._stop_requests()))
        if done == length and not self._trained.stop_training:
            self._ends_epoch = self._trained.stop_training = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.clear_epoch_stop()
        super().on_test_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the next epoch, or stops the training if the data have ended."""
        self.clear_epoch_stop()
        super().on_epoch_end(epoch, logs)
        self._apply_requests(self._processes.all_reduce_flags_now(self._stop_requests()))
        self._num_resumed = self._num_done = 0
        stream = self._data.stream
        stream.end_epoch()
        if stream.is_epoch_short:
            _warn(
                f"Epoch {epoch + 1} ended after {stream.epoch_length} batches because the data "
                f"ended; steps_per_epoch is {stream.steps_per_epoch}."
            )
        is_last = self._trained.stop_training or epoch + 1 >= self._epochs
        if not is_last and not stream.can_go_on():
            _warn(
                f"The generator ended in epoch {epoch + 1} of {self._epochs}, so that the training "
                "stops. Use a generator that never ends with steps_per_epoch, or a PyDataset."
            )
            self._trained.stop_training = True

    @property
    def num_until_pause(self) -> int | None:
        """The number of steps after which all started steps must be finished; `None`: no limit."""
        return None

    def clear_epoch_stop(self) -> None:
        """Resets `model.stop_training` if it was set only to end an epoch."""
        if self._ends_epoch:
            self._ends_epoch = self._trained.stop_training = False

    def _stop_requests(self) -> list[bool]:
        """Returns the requests of this process to all processes: first, to stop the training."""
        return [bool(self._trained.stop_training)]

    def _apply_requests(self, agreed: list[bool]) -> None:
        """Carries out requests of any process, on all of them after the same step."""
        self._trained.stop_training = agreed[0]

    def on_loop_left(self) -> None:
        """Reacts to the user leaving a `Trainer.steps` loop early; does nothing in this class."""

    def _set_model_and_params(self) -> None:
        self.set_model(self._trained)
        steps = self._data.stream.steps
        self.set_params({"verbose": self._verbose, "epochs": self._epochs, "steps": steps})


def feed(
    model: keras.Model, arguments: dict[str, Any], processes: Processes, *, needs_stream: bool
) -> AbstractContextManager[dict[str, Any]]:
    """Returns a context manager that yields the arguments for `model.fit` on a stream of batches.

    Raises:
        NotSupportedError: The data must be a stream, and can't be one.
    """
    seed = backend.current().step.draw_seed()
    if processes.world_size > 1:
        seed = processes.broadcast(seed)
    try:
        options, data = position_data(arguments, seed, row_share(processes))
    except NotSupportedError:
        if needs_stream:
            raise
        return nullcontext(arguments)
    return streamed_training(model, options, data, processes)


def row_share(processes: Processes) -> tuple[int, int]:
    """Returns `(first, step)`, with which a process trains on rows `first::step` of each batch.

    Where one program runs over the devices of all processes, each of them gives all rows.
    """
    return (0, 1) if processes.is_one_program else (processes.rank, processes.world_size)


@contextmanager
def streamed_training(
    model: keras.Model,
    options: dict[str, Any],
    data: PositionedData,
    processes: Processes,
    position: dict[str, Any] | None = None,
    make_callbacks: Callable[..., StreamedCallbacks] = StreamedCallbacks,
) -> Iterator[dict[str, Any]]:
    """Context manager that opens the data, builds the model, and yields arguments of `fit`.

    `options` and `data` are what `position_data` returned; `data` is not open yet. `position` is
    where to continue in the data; `None` begins them.
    """
    if position is None:
        data.open()
    else:
        data.go_to(position)
    build_for_step(model, data.symbolic_batch())
    data.allow_other_sizes(getattr(model, "inputs", None) or [])
    if processes.world_size > 1:
        processes.broadcast_variables(common_variables(model))
    callbacks = make_callbacks(
        options["callbacks"],
        model=model,
        data=data,
        epochs=options["epochs"],
        verbose=options["verbose"],
        processes=processes,
    )
    try:
        yield {**options, "callbacks": callbacks}
    except Exception as error:
        if data.stream.error in (None, error):
            raise
        # The framework has wrapped the error of the data in one of its own: raise the original.
        raise data.stream.error from error
    finally:
        data.stream.close()
        with suppress(Exception):  # The error that ended the training comes first.
            finish_callbacks(callbacks)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
