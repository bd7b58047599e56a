"""Errors of a training, with a note that says which batch they came with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.training.no_loss import refusing_no_loss
from keras_deepseek.training.position_data import no_data_error
from keras_deepseek.training.step_plan import StepPlan


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
    except StopIteration as error:
        if plan.num_made:
            raise InvalidInputError(
                f"The training data raised StopIteration after batch {plan.num_made}, in the "
                "middle of an epoch. Give as many batches as they say that they have."
            ) from error
        raise no_data_error() from error  # Of Keras on JAX, where there is no batch.
    except Exception as error:
        place = _find_place(plan, validation)
        if place is not None:
            error.add_note(f"It came {place} of this training, counted from 1 over all epochs.")
        raise


def _find_place(plan: StepPlan, validation: ValidationWatch) -> str | None:
    if validation.is_in_validation:
        return f"in the validation after batch {plan.num_made}"
    if plan.is_making:
        return f"with batch {plan.num_made + 1}"
    return f"after batch {plan.num_made}" if plan.num_made else None
