"""A training without any loss is refused on every backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError


def no_loss_error(model: keras.Model) -> InvalidInputError:
    """Returns the error that says what to pass.

    Args:
        model: `keras.Model` without a loss.
    """
    return InvalidInputError(
        f"Model {model.name!r} has no loss: pass Trainer(..., loss=...), as in "
        "loss='sparse_categorical_crossentropy'."
    )


@contextmanager
def refusing_no_loss(model: keras.Model) -> Iterator[None]:
    """Says what to pass, in place of what Keras says of a model without a loss.

    Args:
        model: `keras.Model`, compiled.
    """
    try:
        yield
    except ValueError as error:
        if "No loss to compute" in str(error):
            raise no_loss_error(model) from error
        raise


class RefuseNoLoss(keras.callbacks.Callback):
    """Ends a training after its first step where nothing added to the loss.

    On TensorFlow and PyTorch Keras itself refuses; on JAX it goes on to the last epoch, with a loss
    of 0 and gradients of 0.
    """

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Raises where the first loss is exactly 0 and no layer has added one."""
        if batch == 0 and (logs or {}).get("loss") == 0.0 and not self.model.losses:
            raise no_loss_error(self.model)
