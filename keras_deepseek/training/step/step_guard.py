"""What a training does about a step whose loss or gradients are not finite, or whose loss leaps."""

from typing import Literal, get_args

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message

Action = Literal["stop", "skip", "roll_back"]


class StepGuard:
    """Guards a training against steps that would spoil its weights.

    A step is bad when its loss or its gradients are not finite (of gradients in float16, which the
    scaling of the loss provides for, only the loss counts), or when its loss is a spike: more than
    `spike` standard deviations above the running mean. Whatever the action, its update is left out,
    and so are its batch's traces in metrics and in batch normalisation.

    Args:
        action: `"stop"` ends the training with a `TrainingDivergedError` that names the batch;
            `"skip"` goes on with the next batch; `"roll_back"` puts weights and optimizer to those
            of the newest checkpoint and goes on with the next batch. Defaults to `"stop"`.
        spike: float. Standard deviations above the running mean of the loss, from the 20th step
            on. Defaults to `None`: no finite loss is bad.
        most_in_a_row: integer. So many bad steps, one after the other, end the training whatever
            the action. Defaults to `10`.

    Raises:
        InvalidInputError: An argument does not fit.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import StepGuard, Trainer
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> guard = StepGuard("skip", spike=6.0)
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse", guard=guard)
    >>> x = np.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]])
    >>> trainer.fit(x, x[:, 1:], batch_size=1, verbose=0).history["skipped_steps"]
    [1.0]
    """

    def __init__(
        self, action: Action = "stop", *, spike: float | None = None, most_in_a_row: int = 10
    ) -> None:
        if action not in get_args(Action):
            raise InvalidInputError(unknown_name_message("guard", action, get_args(Action)))
        self.action = action
        self.spike = None if spike is None else check_number("spike", spike, above=0)
        self.most_in_a_row = check_integer("most_in_a_row", most_in_a_row)
