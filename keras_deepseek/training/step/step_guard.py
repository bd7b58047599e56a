"""Options that say what to do with bad steps: gradients not finite, or a loss spike."""

from typing import Literal, get_args

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError

Action = Literal["stop", "skip", "roll_back"]


class StepGuard:
    """Protects the weights of a training from bad steps.

    A step is bad if its loss or its gradients are not finite, or if its loss is a spike: more than
    `spike` standard deviations above its running mean. In float16 only the loss counts, since loss
    scaling handles gradients that overflow. With every action, the update of a bad step is skipped.
    Its batch does not change metrics and batch normalization either.

    Args:
        action: `"stop"` ends the training with a `TrainingDivergedError` that names the batch.
            `"skip"` continues with the next batch. `"roll_back"` restores weights and optimizer
            from the newest checkpoint and continues with the next batch. Defaults to `"stop"`.
        spike: float. Standard deviations above the running mean of the loss, from the 20th step
            on. Defaults to `None`: a finite loss is never bad.
        most_in_a_row: integer. The number of consecutive bad steps that ends the training, with any
            action. Defaults to `10`.

    Raises:
        InvalidInputError: An argument has a wrong type or value.

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
            raise InvalidInputError(
                "`guard` must be 'stop', 'skip' or 'roll_back', or a StepGuard with one of them as "
                f"its `action`; received {action!r}."
            )
        self.action = action
        self.spike = None if spike is None else check_number("spike", spike, above=0)
        self.most_in_a_row = check_integer("most_in_a_row", most_in_a_row)
