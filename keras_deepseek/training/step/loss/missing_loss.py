"""A training without any loss is refused on every backend."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.errors import InvalidInputError


def missing_loss_error(model: keras.Model) -> InvalidInputError:
    """Returns the error that says what to pass.

    Args:
        model: `keras.Model` without a loss.
    """
    return InvalidInputError(
        f"Model {model.name!r} has no loss: pass Trainer(..., loss=...), as in "
        "loss='sparse_categorical_crossentropy'."
    )


def check_test_loss(model: keras.Model) -> None:
    """Raises an error where a validation or an evaluation has no loss: JAX would take 0 for one.

    Layers that are not Keras's own, or have a regularizer, may add one.

    Args:
        model: `keras.Model`, compiled.

    Raises:
        InvalidInputError: There is none.
    """
    is_own = (
        type(model).compute_loss is not keras.Model.compute_loss
        or type(model).test_step is not keras.Model.test_step
    )
    if model.loss is not None or is_own or not model.built or model.losses:
        return
    for layer in flatten_layers(model):
        is_kerass = type(layer).__module__.split(".")[0] == "keras"
        if not is_kerass or getattr(layer, "activity_regularizer", None) is not None:
            return
    raise InvalidInputError(
        f"{model.name!r} has no loss to validate or to evaluate by, which is that of the model and "
        "not that of `train_step`: pass Trainer(..., loss=...), or leave the validation out and "
        "call predict in a callback."
    )


@contextmanager
def missing_loss_errors(model: keras.Model) -> Iterator[None]:
    """Says what to pass, in place of what Keras says of a model without a loss.

    Args:
        model: `keras.Model`, compiled.
    """
    try:
        yield
    except ValueError as error:
        if "No loss to compute" in str(error):
            raise missing_loss_error(model) from error
        raise
