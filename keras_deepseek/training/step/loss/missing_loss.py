"""Errors for the training or the validation of a model without a loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import InvalidInputError


def missing_loss_error(model: keras.Model) -> InvalidInputError:
    """Returns the error for training a model without a loss."""
    return InvalidInputError(
        f"Model {model.name!r} has no loss: pass Trainer(..., loss=...), as in "
        "loss='sparse_categorical_crossentropy'."
    )


def check_test_loss(model: keras.Model) -> None:
    """Raises an error if a validation or evaluation would have no loss; JAX would return 0.

    Nothing is raised if the model has custom layers or regularizers, which may add a loss.
    """
    is_own = (
        type(model).compute_loss is not keras.Model.compute_loss
        or type(model).test_step is not keras.Model.test_step
    )
    if model.loss is not None or is_own or not model.built or model.losses:
        return
    for layer in flatten_layers(model):
        is_keras_layer = type(layer).__module__.split(".")[0] == "keras"
        if not is_keras_layer or getattr(layer, "activity_regularizer", None) is not None:
            return
    raise InvalidInputError(
        f"Model {model.name!r} has no loss. Validation and evaluation need one, also if an "
        "override of `train_step` computes its own: pass Trainer(..., loss=...), or use no "
        "validation and call predict in a callback."
    )


@contextmanager
def missing_loss_errors(model: keras.Model) -> Iterator[None]:
    """Context manager that replaces Keras's error for a missing loss by a clearer one."""
    try:
        yield
    except ValueError as error:
        if "No loss to compute" in str(error):
            raise missing_loss_error(model) from error
        raise
