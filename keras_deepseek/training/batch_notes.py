"""Errors of a training, with a note that says which batch they came with."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import keras

from keras_deepseek.artifacts.errors import KerasDeepSeekError
from keras_deepseek.training.no_loss import refusing_no_loss
from keras_deepseek.training.position_data import no_data_error
from keras_deepseek.training.step_plan import StepPlan

_OF_DATA = ("__getitem__", "__iter__", "__next__", "_raise_failure")


class ValidationWatch(keras.callbacks.Callback):
    """Knows whether a validation is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.is_in_validation = False

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """A validation begins."""
        self.is_in_validation = True

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """A validation ends."""
        self.is_in_validation = False


@contextmanager
def noting_batch(model: keras.Model, plan: StepPlan, validation: ValidationWatch) -> Iterator[None]:
    """Makes the errors of a training say what a user needs to find their cause.

    Args:
        model: `keras.Model` that is trained.
        plan: `StepPlan` by which it is.
        validation: `ValidationWatch` among its callbacks.

    Raises:
        InvalidInputError: The model has no loss, or there is no batch.
    """
    try:
        with refusing_no_loss(model):
            yield
    except StopIteration as error:  # Of Keras on JAX, where there is no batch.
        raise no_data_error() from error
    except Exception as error:
        place = _find_place(error, plan, validation)
        if place is not None:
            error.add_note(f"It came {place} of this training, counted from 1 over all epochs.")
        raise


def _find_place(error: Exception, plan: StepPlan, validation: ValidationWatch) -> str | None:
    if validation.is_in_validation:
        return f"in the validation after batch {plan.num_made}"
    if plan.is_making or came_out_of_data(error):
        return f"with batch {plan.num_made + 1}"
    if plan.num_made and not isinstance(error, KerasDeepSeekError):  # Ours say it themselves.
        return f"after batch {plan.num_made}"
    return None


def came_out_of_data(error: BaseException) -> bool:
    """Returns whether an error was raised while data were asked for a batch.

    Keras takes its own frames out of a traceback; those of the data, which are generators or have
    the methods of sequences and iterators, and those of callbacks stay.

    Args:
        error: The error.
    """
    # TensorFlow's own errors hide those of Python's data, and where they came from.
    if type(error).__module__.split(".")[0] == keras.backend.backend():
        return True
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        module = frame.f_globals.get("__name__", "")
        if module.startswith("keras_deepseek.training"):  # Its contexts are generators as well.
            continue
        if frame.f_code.co_name.startswith("on_"):
            return False
        if frame.f_code.co_name in _OF_DATA or _is_generator(frame.f_code):
            return True
    return False


def _is_generator(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_GENERATOR)
