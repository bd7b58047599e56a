"""The callback that reacts to bad steps: by an error, a warning, or a rollback."""

import logging
from collections.abc import Callable
from typing import Any

import keras

from keras_deepseek.errors import TrainingDivergedError
from keras_deepseek.training.step.step_guard import GuardMetric, StepGuard, StepRecord, Verdict

_logger = logging.getLogger(__name__)


class GuardCallback(keras.callbacks.Callback):
    """Reacts to bad steps, as a guard says, by an error, a warning or a rollback.

    It reads the logs of the step before the last one, which are already computed. Reading those of
    the last step would make every step wait.

    Args:
        roll_back: Function that restores a model and its optimizer from the newest checkpoint, and
            returns its step, or `None` if there is no checkpoint. `None` without checkpoints.
    """

    def __init__(
        self,
        guard: StepGuard,
        steps: GuardMetric,
        roll_back: Callable[[keras.Model], int | None] | None,
    ) -> None:
        super().__init__()
        self._guard = guard
        self._steps = steps
        self._roll_back = roll_back
        self._unread: tuple[int, Any] | None = None
        self._epoch = 0
        self._num_bad = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._read(batch)
        if logs is not None and "skipped_steps" in logs:
            self._unread = batch, logs["skipped_steps"]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._unread is not None:
            self._read(self._unread[0])

    def get_state(self) -> dict[str, Any]:
        """Handles the last step before a checkpoint is taken, and returns no state."""
        if self._unread is not None:
            self._read(self._unread[0])
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because the state is in the variables of the `GuardMetric`."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._unread = None
        self._num_bad = self._steps.num_bad

    def _read(self, newest: int) -> None:
        """Handles the bad steps up to batch `newest` whose logs have not been read yet."""
        if self._unread is None:
            return
        (batch, number), self._unread = self._unread, None
        num_bad = int(number)
        if num_bad == self._num_bad:
            return
        self._num_bad = num_bad
        model = self.model  # On JAX this reads the variables back.
        steps = self._steps.read()
        # The last record is that of batch `newest`. Those before `end` are up to `batch`.
        end = len(steps) - (newest - batch)
        for back in range(min(int(model.steps_per_execution), end), 0, -1):
            step = steps[end - back]
            if step.verdict is not Verdict.GOOD:
                self._handle_bad_step(
                    model, f"batch {batch + 2 - back} of epoch {self._epoch + 1}", step
                )

    def _handle_bad_step(self, model: keras.Model, where: str, step: StepRecord) -> None:
        what = f"{self._describe(where, step)}; its update was skipped"
        if self._guard.action == "stop" or step.num_in_a_row >= self._guard.most_in_a_row:
            count = f" ({step.num_in_a_row} in a row)" if step.num_in_a_row > 1 else ""
            advice = ", or skip such batches (guard='skip')" if self._guard.action == "stop" else ""
            raise TrainingDivergedError(
                f"{what}{count}, and the training stopped. The weights of {model.name!r} are those "
                "before it. Look at the data of that batch, lower the learning rate, clip the "
                f"gradients (gradient_clip=){advice}."
            )
        if self._guard.action == "roll_back" and self._roll_back is not None:
            number = self._roll_back(model)
            where = "there is no checkpoint yet to restore the weights from"
            if number is not None:
                where = f"weights and optimizer are restored from the checkpoint of step {number}"
            what = f"{what}; {where}"
        _logger.warning("%s.", what)

    def _describe(self, where: str, step: StepRecord) -> str:
        if step.verdict is Verdict.GRADIENTS_NOT_FINITE:
            return f"The gradients of {where} are not finite (its loss is {step.loss:g})"
        if step.verdict is Verdict.LOSS_SPIKE:
            return (
                f"The loss of {where} jumped to {step.loss:g}, more than {self._guard.spike:g} "
                "standard deviations above its running mean"
            )
        return f"The loss of {where} is {step.loss:g}"
