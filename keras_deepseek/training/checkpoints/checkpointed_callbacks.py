"""What Keras's training loop reports to in a training with checkpoints.

To what it is without them it adds the checkpoints, and, at the start of a resumed training, puts
everything back.
"""

import logging
from collections.abc import Iterable
from typing import Any

import keras

from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.backend.keras_private.callbacks import finish_callbacks
from keras_deepseek.backend.keras_private.trainers import epoch_logs, read_learning_rate
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.training.checkpoints.callback_states import CallbackStates
from keras_deepseek.training.checkpoints.checkpoint_writer import CheckpointWriter
from keras_deepseek.training.checkpoints.streamed_callbacks import StreamedCallbacks
from keras_deepseek.training.checkpoints.training_state import read_variables, write_variables
from keras_deepseek.training.cluster.stop_signal import StopSignal
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual

_logger = logging.getLogger(__name__)

_OF_VALIDATION = "val_"  # What the names of its logs begin with.


class CheckpointedCallbacks(StreamedCallbacks):
    """The callbacks of a training, which a checkpoint is taken after.

    Args:
        callbacks: iterable of Keras callbacks.
        writer: `CheckpointWriter`.
        stop_signal: `StopSignal`.
        every: integer, the steps between two checkpoints, or `None` for one at each epoch's end.
        monitor: string, the log that scores an epoch, or `None`.
        resumed: `Checkpoint` to go on from, or `None`.
        begun: dict. What the training began with, and keeps to: `"seed"`, which the order of its
            data was drawn by, and others by their names.
        validates: boolean. Whether some epochs end with a validation.
        residual: `GradientResidual` of processes that train together. Defaults to `None`.
        **options: Those of `StreamedCallbacks`.
    """

    def __init__(
        self,
        callbacks: Iterable[keras.callbacks.Callback],
        *,
        writer: CheckpointWriter,
        stop_signal: StopSignal,
        every: int | None,
        monitor: str | None,
        resumed: Checkpoint | None,
        begun: dict[str, Any],
        validates: bool,
        residual: GradientResidual | None = None,
        **options: Any,
    ) -> None:
        super().__init__(callbacks, **options)
        self._writer = writer
        self._stop_signal = stop_signal
        self._every = every
        self._monitor = monitor
        self._resumed = resumed
        self._begun = begun
        self._validates = validates
        self._residual = residual
        self._states = CallbackStates(self.callbacks)
        self._step = self._saved_step = resumed.step if resumed else 0
        self._first = resumed.state["batch"] if resumed else 0
        self._epoch = 0
        self._is_told_to_end = False  # Whether SIGTERM has come, to one of the processes.
        self._is_left = False  # Whether the loop around the steps was left before its end.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Shows the callbacks the model as it was left, and then gives them back what they knew."""
        super().on_train_begin(logs)
        self._restore()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins an epoch, or goes on in its middle."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        if self._first:
            self._restore()  # The epoch had begun before: that it begins changes nothing.
        self._resumed = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes a checkpoint where one is due; at the epoch's end, after its validation."""
        before = self._done
        super().on_train_batch_end(batch, logs)
        self._step += self._done - before
        self._writer.check()
        if self._trained.stop_training:
            return
        if self._is_told_to_end:
            self._save_and_exit()
        elif self._is_due():
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes a checkpoint where one is due."""
        super().on_epoch_end(epoch, logs)
        self._epoch = epoch + 1
        score = self._score(logs or {})
        is_last = self._trained.stop_training or self._epoch >= self._epochs
        if self._is_told_to_end and not self._is_left:
            self._save_and_exit(score)
        is_misnamed = self._is_misnamed(logs or {})
        if (
            is_last
            or self._every is None
            or is_misnamed
            or self._is_due()
            or self._is_among_best(score)
        ):
            self._save(score)
        if is_misnamed:
            self._writer.finish()
            raise InvalidInputError(
                unknown_name_message("log in keep_best", self._monitor, logs or {})
                + " The training is saved: give keep_best another, and go on by "
                "fit(..., resume=True)."
            )

    def _wishes(self) -> list[bool]:
        return [*super()._wishes(), self._stop_signal.received]

    def _agree(self, agreed: list[bool]) -> None:
        super()._agree(agreed)
        self._is_told_to_end = agreed[1]

    @property
    def num_until_pause(self) -> int | None:
        """The steps until the next checkpoint, which holds no step that is under way."""
        return None if self._every is None else self._every - self._step % self._every

    def leave(self) -> None:
        """Takes the last checkpoint of a training that is left between two steps.

        Where the step before has ended an epoch, or the training, its end is told as ever.
        """
        self._is_left = True
        if self._trained.stop_training or self._data.stream.epoch_length is not None:
            self.on_epoch_end(self._epoch, epoch_logs(self._trained, self._logs))
        if self._step != self._saved_step:
            self._save()

    def _introduce(self) -> None:
        super()._introduce()
        self._restore()

    def _restore(self) -> None:
        if self._resumed is None:
            return
        state = self._resumed.state
        write_variables(self._trained, state["variables"])
        if self._residual is not None:
            self._residual.write(self._trained.trainable_variables, state.get("residual"))
        self._states.write(state["callbacks"])
        write_random_state(state["random"])

    def _is_due(self) -> bool:
        return self._every is not None and (
            self._step // self._every > self._saved_step // self._every
        )

    def _is_among_best(self, score: float | None) -> bool:
        if score is None:
            return False
        self._writer.finish()  # What is being written has a score as well.
        # Rank 0 alone knows the folder.
        return self._processes.rank == 0 and self._writer.folder.is_among_best(score)

    def _score(self, logs: dict[str, Any]) -> float | None:
        score = None if self._monitor is None else logs.get(self._monitor)
        return None if score is None else float(score)

    def _is_misnamed(self, logs: dict[str, Any]) -> bool:
        """Returns whether no epoch will log what `keep_best` asks for.

        An epoch without a validation says nothing of the logs of one.
        """
        if self._monitor is None or self._monitor in logs:
            return False
        is_validated = any(name.startswith(_OF_VALIDATION) for name in logs)
        return is_validated or not (self._validates and self._monitor.startswith(_OF_VALIDATION))

    def _save_and_exit(self, score: float | None = None) -> None:
        self._save(score)
        self._writer.finish()
        _logger.info("SIGTERM: the training was saved after step %d.", self._step)
        raise SystemExit(0)

    def _save(self, score: float | None = None) -> None:
        finish_callbacks(self)
        # First of all: those that watch the steps may end the training now, or roll it back.
        callbacks = self._states.read()
        self._saved_step = self._step
        residual = None if self._residual is None else self._residual.read()
        if self._processes.rank > 0:
            return
        state = {
            "backend": keras.backend.backend(),
            "variables": read_variables(self.model),  # On JAX the property brings their values.
            "residual": residual,
            "random": read_random_state(),
            "callbacks": callbacks,
            "data": self._data.read_position(self._done),
            **self._begun,
            "rate": read_learning_rate(self.model),
            "epoch": self._epoch,
            "batch": self._done,
            "is_stopped": bool(self._trained.stop_training),
        }
        self._writer.submit(Checkpoint(self._step, state, score))
