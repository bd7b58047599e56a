"""An error in place of a training that goes on with a loss that is no number."""

import logging
import math
from typing import Any

import keras

from keras_deepseek.errors import TrainingDivergedError
from keras_deepseek.training.checkpoints.training_state import find_not_finite

_logger = logging.getLogger(__name__)


class FiniteCheck(keras.callbacks.Callback):
    """Ends a training whose loss is not finite, by name of the first batch with such a loss.

    It looks at the logs where Keras has read them already, so that no step waits for it. The
    weights are spoilt by then, and no checkpoint is taken of them. A `StepGuard` keeps them.

    A loss may be finite where gradients are not: on TensorFlow `relu` makes a NaN 0. So the weights
    themselves are looked at before each checkpoint and at the end of each epoch.
    """

    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._trained: keras.Model | None = None
        self._epoch = 0
        self._newest = -1  # The last batch of the epoch that it was told of.
        self._found: tuple[int, int, float] | None = None
        self._is_checked = False  # Whether the weights were looked at since the last step.

    def set_model(self, model: keras.Model) -> None:
        """Keeps the model itself: on JAX, Keras's own property stops the training to read it."""
        super().set_model(model)
        self._trained = model

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._found = None
        self._is_checked = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._newest = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the first loss that is not finite, and asks for the end of the epoch."""
        self._is_checked = False
        self._newest = max(batch, self._newest)
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss):
            return
        # Keras may tell of steps in another order than they were made.
        found = (self._epoch, batch, float(loss))
        if self._found is None or found < self._found:
            self._found = found
        if self._trained is not None:
            self._trained.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the weights, and says where the loss of a validation is not finite."""
        loss = (logs or {}).get("val_loss")
        if loss is not None and not math.isfinite(loss):
            _logger.warning(
                "val_loss is %g after epoch %d: look at the validation data for NaN, and at their "
                "labels for those that are no class.",
                *(loss, epoch + 1),
            )
        self._check()
        self._check_weights()

    def get_state(self) -> dict[str, Any]:
        """Returns nothing, and lets no checkpoint be taken of weights that are spoilt."""
        self._check()
        self._check_weights()
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing: there is nothing to remember."""

    def _check(self) -> None:
        if self._found is None:
            return
        epoch, batch, loss = self._found
        state = "The weights are finite still."
        if find_not_finite(self.model.trainable_variables):
            state = "The weights are spoilt: go on from a checkpoint."
        first = "" if batch == epoch == 0 else ", or the update before, by gradients that were not"
        raise TrainingDivergedError(
            f"The loss is {loss:g} from batch {batch + 1} of epoch {epoch + 1} on, and the "
            f"training stopped. That batch made it so{first}. Look at the inputs of the batch, and "
            "at its labels: those that are no class do it, and binary ones that are not 0 or 1. "
            "Lower the learning rate or clip the gradients (gradient_clip=) where it grew; "
            "guard='stop' says which it was, "
            f"guard='skip' leaves such batches out. {state}"
        )

    def _check_weights(self) -> None:
        if self._is_checked:
            return
        self._is_checked = True
        model = self.model  # On JAX this brings the variables of the step.
        spoilt = find_not_finite(model.trainable_variables)
        if spoilt:
            raise TrainingDivergedError(
                f"Weights of {model.name!r} are not finite, {spoilt[0]!r} among them, though the "
                f"loss is: a batch up to {self._newest + 1} of epoch {self._epoch + 1} had NaN in "
                "it, or gradients that overflow. "
                "guard='stop' names the batch, guard='skip' leaves such batches out. Go on from a "
                "checkpoint."
            )
