"""A training without any loss is refused on every backend."""

from collections.abc import Iterator
from contextlib import contextmanager

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
