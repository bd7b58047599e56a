"""Ends a training whose loss or weights are not finite, if it has no guard."""

import logging
import math
from typing import Any

import keras

from keras_deepseek.errors import TrainingDivergedError
from keras_deepseek.training.checkpoints.training_state import find_not_finite

_logger = logging.getLogger(__name__)


class FiniteCheck(keras.callbacks.Callback):
    """Ends a training whose loss is not finite, with an error that names the first such batch.

    It reads logs only after Keras has read them, so that no step waits for it. By then the weights
    may not be finite either, and no checkpoint of them is taken. A `StepGuard` protects the
    weights.

    The loss may be finite where gradients are not: on TensorFlow, `relu` turns NaN into 0. So the
    weights are checked too, before each checkpoint and at the end of each epoch.
    """

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._trained: keras.Model | None = None
        self._epoch = 0
        self._newest = -1  # The last batch of the epoch whose logs were read.
        self._found: tuple[int, int, float] | None = None
        self._is_checked = False  # The weights were checked after the last step.

    def set_model(self, model: keras.Model) -> None:
        """Keeps the model, since on JAX `self.model` copies all variables back, which is slow."""
        super().set_model(model)
        self._trained = model

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._found = None
        self._is_checked = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._newest = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Records the first loss that is not finite, and stops the epoch."""
        self._is_checked = False
        self._newest = max(batch, self._newest)
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss):
            return
        # Keras may report steps in another order than it ran them.
        loss_position = (self._epoch, batch, float(loss))
        if self._found is None or loss_position < self._found:
            self._found = loss_position
        if self._trained is not None:
            self._trained.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the weights, and logs a warning if `val_loss` is not finite."""
        loss = (logs or {}).get("val_loss")
        if loss is not None and not math.isfinite(loss):
            _logger.warning(
                "val_loss is %g after epoch %d: look for NaN in the validation data, and for "
                "labels outside the classes.",
                *(loss, epoch + 1),
            )
        self._check()
        self._check_weights()

    def get_state(self) -> dict[str, Any]:
        """Raises an error before a checkpoint if weights are not finite; returns no state."""
        self._check()
        self._check_weights()
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because this callback has no state."""

    def _check(self) -> None:
        if self._found is None:
            return
        epoch, batch, loss = self._found
        state = "The weights are still finite."
        if find_not_finite(self.model.trainable_variables):
            state = "The weights are not finite: continue from a checkpoint."
        first = "" if batch == epoch == 0 else ", or the update before it"
        raise TrainingDivergedError(
            f"The loss is {loss:g} from batch {batch + 1} of epoch {epoch + 1} on, and the "
            f"training stopped. The cause is that batch{first}. Look at the inputs of the batch, "
            "and at its labels: a label outside the classes has this effect, and a binary label "
            "that is not 0 or 1. If the loss grew before, lower the learning rate or clip the "
            "gradients (gradient_clip=). guard='stop' names the cause, guard='skip' skips such "
            f"batches. {state}"
        )

    def _check_weights(self) -> None:
        if self._is_checked:
            return
        self._is_checked = True
        model = self.model  # On JAX this reads the variables back.
        not_finite = find_not_finite(model.trainable_variables)
        if not_finite:
            raise TrainingDivergedError(
                f"Weights of {model.name!r} are not finite, such as {not_finite[0]!r}, although "
                f"the loss is finite: a batch up to {self._newest + 1} of epoch {self._epoch + 1} "
                "had NaN in it, or gradients that overflow. guard='stop' names the batch, "
                "guard='skip' skips such batches. Continue from a checkpoint."
            )
