"""One step of training, as Keras's loop on TensorFlow takes it."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.keras_private.keras_internals import tensorflow_specs
from keras_deepseek.backend.tensorflow.processes import LostPeers


def make_train_step(
    model: keras.Model,
    step: Callable[[Any], dict[str, Any]],
    carried: Callable[[], Sequence[keras.Variable]] = list,
) -> Callable[..., Any]:
    """Returns what Keras takes as the `train_step` of a model."""
    return step


def build_by_step(model: keras.Model, batch: Any) -> None:
    """Makes the variables that a model's own `train_step` uses, as far as tracing it does."""
    function = tf.function(functools.partial(type(model).train_step, model))
    function.get_concrete_function(tensorflow_specs(batch))


def run_step(model: keras.Model, batch: Any) -> dict[str, Any]:
    """Trains a model, whose training function was made, on one batch, and returns the logs."""
    return dict(model.train_function(iter([batch])))


def ends_data(error: Exception) -> bool:
    """Returns whether an error out of a training function says that the data have ended."""
    return isinstance(error, StopIteration | tf.errors.OutOfRangeError)


def separate_variables(model: keras.Model) -> None:
    """Gives each variable of a model, its optimizer and its metrics memory of its own."""
    # It has: an assignment copies.


def keeping_variables(model: keras.Model) -> AbstractContextManager[object]:
    """Returns a context out of which no error leaves a compiled model without its variables."""
    return nullcontext()


def make_train_function(
    model: keras.Model, carried: Callable[[], Sequence[keras.Variable]], *, force: bool
) -> Callable[..., Any]:
    """Returns what Keras makes of the `train_step` of a model, and keeps in it."""
    type(model).make_train_function(model, force=force)
    train_function = model.train_function

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
