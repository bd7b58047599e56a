"""One step of training, as Keras's loop on TensorFlow takes it."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.tensorflow.processes import LostPeers


def make_train_step(
    model: keras.Model, step: Callable[[Any], dict[str, Any]]
) -> Callable[..., Any]:
    """Returns what Keras takes as the `train_step` of a model."""
    return step


def run_step(model: keras.Model, batch: Any) -> dict[str, Any]:
    """Trains a model, whose training function was made, on one batch, and returns the logs."""
    return dict(model.train_function(iter([batch])))


def ends_data(error: Exception) -> bool:
    """Returns whether an error out of a training function says that the data have ended."""
    return isinstance(error, StopIteration | tf.errors.OutOfRangeError)


def separate_variables(model: keras.Model) -> None:
    """Gives each variable of a model, its optimizer and its metrics memory of its own."""
    # It has: an assignment copies.


def keep_state(model: keras.Model, train_function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled training function after whose errors a model still has its variables."""

    def run(*arguments: Any) -> Any:
        with LostPeers("make a step"):
            return train_function(*arguments)

    return run


def run_before_step(
    model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
) -> Callable[..., Any] | None:
    """Returns a `train_step` that begins with `prepare()`; `None` where no step is compiled."""

    def run(data: Any) -> Any:
        prepare()
        return train_step(data)

    return run
