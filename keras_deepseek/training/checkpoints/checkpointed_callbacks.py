"""The callback list that takes checkpoints, writes them, and restores a resumed training's state.

Keras's training loop calls it in place of its own `CallbackList`.
"""

import logging
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.backend.data.random_state import read_random_state, write_random_state
from keras_deepseek.backend.keras_private.callbacks import finish_callbacks
from keras_deepseek.backend.keras_private.trainers import epoch_logs, read_learning_rate
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.checkpoints.callback_states import CallbackStates
from keras_deepseek.training.checkpoints.streamed_training import StreamedCallbacks
from keras_deepseek.training.checkpoints.training_state import (
    is_divided,
    read_pieces,
    read_variables,
    write_variables,
)
from keras_deepseek.training.cluster.stop_signal import StopSignal
from keras_deepseek.training.step.gradients.gradient_residual import GradientResidual
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts

_logger = logging.getLogger(__name__)

_VALIDATION_PREFIX = "val_"  # Of the logs of a validation.


class CheckpointWriter:
    """Writes checkpoints one at a time in a background thread."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, checkpoint: Checkpoint) -> None:
        """Starts writing a checkpoint in the background, after the previous one is written.

        Its arrays must not change any more. Raises the error of the previous one, if it failed.
        """
        self.finish()
        self._thread = threading.Thread(
            target=self._write, args=[checkpoint], name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises the error of a failed write, without waiting for one that is running."""
        if self._thread is None or not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Waits until the last checkpoint is on the disk, and raises its error if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self.folder.write(checkpoint)
        except Exception as error:  # noqa: BLE001 - `finish` raises it in the training.
            self._error = error


def _check_shared(folder: Path, training_id: str, processes: Processes) -> None:
    """Raises an error on all ranks if one of them does not see the folder of rank 0."""
    path = folder / f"step_0.{training_id}.shared"  # As a checkpoint, should it be left there.
    if processes.rank == 0:
        path.touch()
    processes.gather(np.zeros(0))
    sees = [bool(exists) for exists in processes.gather(np.array(path.exists()))]
    if processes.rank == 0:
        path.unlink()
    if not all(sees):
        raise InvalidInputError(
            f"Each process writes its part of a checkpoint, and rank {sees.index(False)} does not "
            f"see the folder of rank 0, {str(folder)!r}. Name a folder that all of them share."
        )


class CheckpointedCallbacks(StreamedCallbacks):
    """The callbacks of a training with checkpoints. A checkpoint is taken after they have run.

    Args:
        every: integer, the steps between two checkpoints, or `None` for one at each epoch's end.
        monitor: string, the log that scores an epoch, or `None`.
        extra_state: dict. Further entries of each checkpoint, such as the `"seed"` for the order of
            the data.
        validates: boolean. Some epochs end with a validation.
        parts: The parts of the optimizer's state, if each process has one.
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
        extra_state: dict[str, Any],
        validates: bool,
        residual: GradientResidual | None = None,
        parts: OptimizerParts | None = None,
        **options: Any,
    ) -> None:
        super().__init__(callbacks, **options)
        self._writer = writer
        self._stop_signal = stop_signal
        self._every = every
        self._monitor = monitor
        self._resumed = resumed
        self._extra_state = extra_state
        self._validates = validates
        self._residual = residual
        self._training_id = ""  # The same on all ranks, and in no other training.
        self._num_saves = 0
        self._parts = parts
        self._is_divided = False  # No process has the whole state: each writes its pieces.
        self._step = self._saved_step = resumed.step if resumed else 0
        self._num_resumed = resumed.state["batch"] if resumed else 0
        self._epoch = 0
        self._is_stop_requested = False  # SIGTERM has come, to any of the processes.
        self.is_requested = False
        """True if a checkpoint is to be taken after the next step."""
        self._is_loop_left = False  # The user left the loop over `steps` before its end.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Calls the callbacks with the restored model, and then restores the callbacks' state."""
        self._training_id = self._processes.broadcast(secrets.token_hex(4))
        self._is_divided = self._processes.world_size > 1 and is_divided(self._trained, self._parts)
        if self._is_divided:
            _check_shared(self._writer.folder.path, self._training_id, self._processes)
        super().on_train_begin(logs)
        self._states.mark_begin()
        self._restore()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins an epoch, or continues in the middle of one."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        if self._num_resumed:
            # The epoch began before: undo what the callbacks' `on_epoch_begin` has changed.
            self._restore()
        self._resumed = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes a checkpoint if one is due; at the end of an epoch, `on_epoch_end` takes it."""
        num_done_before = self._num_done
        super().on_train_batch_end(batch, logs)
        self._step += self._num_done - num_done_before
        self._writer.check()
        if self._trained.stop_training:
            return
        if self._is_stop_requested:
            self._save_and_exit()
        elif self._is_due() or self.is_requested:
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes a checkpoint after the validation of an epoch, if one is due."""
        super().on_epoch_end(epoch, logs)
        self._epoch = epoch + 1
        score = self._score(logs or {})
        is_last = self._trained.stop_training or self._epoch >= self._epochs
        if self._is_stop_requested and not self._is_loop_left:
            self._save_and_exit(score)
        is_monitor_unknown = self._is_monitor_unknown(logs or {})
        if (
            is_last
            or self._every is None
            or is_monitor_unknown
            or self._is_due()
            or self._is_among_best(score)
        ):
            self._save(score)
        if is_monitor_unknown:
            self._writer.finish()
            raise self._unknown_monitor_error(logs or {})

    def _stop_requests(self) -> list[bool]:
        return [*super()._stop_requests(), self._stop_signal.received, self.is_requested]

    def _apply_requests(self, agreed: list[bool]) -> None:
        super()._apply_requests(agreed)
        self._is_stop_requested, self.is_requested = agreed[1:]

    @property
    def num_until_pause(self) -> int | None:
        """The number of steps until the next checkpoint; all of them must then be finished."""
        return None if self._every is None else self._every - self._step % self._every

    def on_loop_left(self) -> None:
        """Takes a last checkpoint when the user leaves a `Trainer.steps` loop.

        If the last step ended an epoch or the training, `on_epoch_end` is called first.
        """
        self._is_loop_left = True
        if self._trained.stop_training or self._data.stream.epoch_length is not None:
            self.on_epoch_end(self._epoch, epoch_logs(self._trained, self._logs))
        if self._step != self._saved_step:
            self._save()

    def _set_model_and_params(self) -> None:
        super()._set_model_and_params()
        # Now, after `set_model` has copied settings such as a folder, which must not be restored.
        self._states = CallbackStates(self.callbacks)
        self._restore()

    def _restore(self) -> None:
        if self._resumed is None:
            return
        state = self._resumed.state
        write_variables(self._trained, state["variables"], self._parts)
        if self._residual is not None:
            self._residual.write(self._trained.trainable_variables, state.get("residual"))
        self._states.write(state["callbacks"])
        write_random_state(state["random"])

    def _is_due(self) -> bool:
        """Returns True if a multiple of `every` steps was reached since the last checkpoint."""
        return self._every is not None and (
            self._step // self._every > self._saved_step // self._every
        )

    def _is_among_best(self, score: float | None) -> bool:
        if score is None:
            return False
        self._writer.finish()  # The checkpoint that is being written has a score as well.
        # Perhaps only rank 0 has the folder.
        is_best = self._processes.rank == 0 and self._writer.folder.is_among_best(score)
        return bool(self._processes.broadcast(is_best))

    def _score(self, logs: dict[str, Any]) -> float | None:
        score = None if self._monitor is None else logs.get(self._monitor)
        return None if score is None else float(score)

    def _is_monitor_unknown(self, logs: dict[str, Any]) -> bool:
        """Returns True if no epoch will have the log that `keep_best` names.

        An epoch without a validation does not show which logs a validation has.
        """
        if self._monitor is None or self._monitor in logs:
            return False
        is_validated = any(name.startswith(_VALIDATION_PREFIX) for name in logs)
        is_of_validation = self._monitor.startswith(_VALIDATION_PREFIX)
        return is_validated or not (self._validates and is_of_validation)

    def _unknown_monitor_error(self, logs: dict[str, Any]) -> InvalidInputError:
        log_names, monitor = ", ".join(sorted(logs)), str(self._monitor)
        problem = f"`keep_best` must name a log of the training: {log_names}; received {monitor!r}."
        advice = "name another log, and"
        if monitor.startswith(_VALIDATION_PREFIX) and not self._validates:
            problem = f"`keep_best` names {monitor!r}, and there are no validation data."
            advice = (
                f"pass validation_data to fit, or name a log of the training ({log_names}), and"
            )
        return InvalidInputError(
            f"{problem} The training is saved: {advice} continue with fit(..., resume=True)."
        )

    def _save_and_exit(self, score: float | None = None) -> None:
        self._save(score)
        self._writer.finish()
        _logger.info("SIGTERM: saved the training after step %d.", self._step)
        raise SystemExit(0)

    def _save(self, score: float | None = None) -> None:
        """Takes a checkpoint, and writes it in the background. All ranks must call it.

        Rank 0 writes the state, and all others their pieces of it, if it is divided.
        """
        finish_callbacks(self)
        # First: a callback that checks the steps may stop the training here, or roll it back.
        callbacks = self._states.read()
        self._saved_step = self._step
        self.is_requested = False
        residual = None if self._residual is None else self._residual.read()
        self._num_saves += 1
        save_id, rank = f"{self._training_id}-{self._num_saves}", self._processes.rank
        num_ranks = self._processes.world_size if self._is_divided else 1
        # On JAX, `self.model` updates the variables.
        if 0 < rank < num_ranks:
            state: dict[str, Any] = {"pieces": read_pieces(self.model, self._parts)}
            self._writer.submit(Checkpoint(self._step, state, score, rank, num_ranks, save_id))
        if rank > 0:
            return
        state = {
            "backend": keras.backend.backend(),
            "variables": read_variables(self.model, self._parts),
            "residual": residual,
            "random": read_random_state(),
            "callbacks": callbacks,
            "data": self._data.read_position(self._num_done),
            **self._extra_state,
            "rate": read_learning_rate(self.model),
            "epoch": self._epoch,
            "batch": self._num_done,
            "is_stopped": bool(self._trained.stop_training),
        }
        self._writer.submit(Checkpoint(self._step, state, score, rank, num_ranks, save_id))
