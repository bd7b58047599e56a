"""The guard against bad steps, such as gradients that are not finite, and the metric of them."""

from enum import IntEnum
from typing import Any, Literal, NamedTuple, get_args

import keras
from keras import ops

from keras_deepseek.backend.keras_private.layers import batch_states
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


class Verdict(IntEnum):
    """The verdict on a step that a guard has checked: good, or why it is bad."""

    GOOD = 0
    LOSS_NOT_FINITE = 1
    GRADIENTS_NOT_FINITE = 2
    LOSS_SPIKE = 3


class StepRecord(NamedTuple):
    """The record of a checked step: its verdict, its loss and the bad steps in a row."""

    verdict: Verdict
    loss: float
    num_in_a_row: int
    """The number of consecutive bad steps up to this one, itself included."""


_DECAY = 0.98  # Of the running mean of the loss: a window of about 50 steps.
_SETTLED = 20  # Good steps before the running mean is used.


class GuardMetric(keras.metrics.Metric):
    """Finds and records bad steps in variables, which Keras passes to the step as a metric's."""

    def __init__(self, guard: StepGuard, steps_per_execution: int = 1) -> None:
        super().__init__(name="guarded_steps")
        self._spike = guard.spike
        self._mean = self.add_weight(name="mean", initializer="zeros")
        self._variance = self.add_weight(name="variance", initializer="zeros")
        self._num_good = self.add_weight(name="num_good", initializer="zeros")
        self._num_bad = self.add_weight(name="num_bad", initializer="zeros")
        self._num_in_a_row = self.add_weight(name="num_in_a_row", initializer="zeros")
        # Holds two executions: the logs of the first are read while the second runs.
        self._latest = self.add_weight(
            (2 * steps_per_execution, len(StepRecord._fields)), initializer="zeros", name="latest"
        )
        self._num_in_means = self.add_weight(name="num_in_means", initializer="zeros")

    def copy_states(self, model: keras.Model) -> list[tuple[keras.Variable, Any]]:
        """Returns pairs of a variable and a copy of its value, to undo a bad batch.

        They are the variables of layers and metrics that a forward pass assigns.
        """
        guard_ids = {id(variable) for variable in self.variables}
        states = [*batch_states(model), *model.metrics_variables]
        return [(state, ops.copy(state.value)) for state in states if id(state) not in guard_ids]

    def judge(self, loss: Any, is_finite: Any) -> Any:
        """Checks and records a step; returns a boolean scalar tensor, true for a good step.

        `is_finite` is true if the gradients are finite.
        """
        loss = ops.cast(loss, "float32")
        verdict: Any = ops.where(
            is_finite, float(Verdict.GOOD), float(Verdict.GRADIENTS_NOT_FINITE)
        )
        verdict = ops.where(ops.isfinite(loss), verdict, float(Verdict.LOSS_NOT_FINITE))
        if self._spike is not None:
            deviation = ops.sqrt(ops.maximum(self._variance, 1e-12))
            is_spike = ops.logical_and(
                self._num_good >= _SETTLED, loss > self._mean + self._spike * deviation
            )
            is_leap = ops.logical_and(is_spike, ops.equal(verdict, float(Verdict.GOOD)))
            verdict = ops.where(is_leap, float(Verdict.LOSS_SPIKE), verdict)
        verdict = ops.cast(verdict, "float32")
        is_good = ops.equal(verdict, float(Verdict.GOOD))
        self._remember(loss, verdict, is_good)
        return is_good

    def _remember(self, loss: Any, verdict: Any, is_good: Any) -> None:
        """Records a step; a good one also changes the running mean and variance of the loss."""
        mean_before, variance_before, in_a_row = (
            ops.convert_to_tensor(variable)
            for variable in (self._mean, self._variance, self._num_in_a_row)
        )
        # A plain mean over the first steps: a decaying mean would be biased towards zero.
        keep = ops.minimum(_DECAY, self._num_good / (self._num_good + 1.0))
        distance = loss - mean_before
        mean = mean_before + (1.0 - keep) * distance
        variance = keep * (variance_before + (1.0 - keep) * ops.square(distance))
        good = ops.cast(is_good, "float32")
        self._mean.assign(ops.where(is_good, mean, mean_before))
        self._variance.assign(ops.where(is_good, variance, variance_before))
        self._num_good.assign(self._num_good + good)
        self._num_in_means.assign(self._num_in_means + good)
        self._num_bad.assign(self._num_bad + (1.0 - good))
        in_a_row = ops.where(is_good, 0.0, in_a_row + 1.0)
        self._num_in_a_row.assign(in_a_row)
        step = ops.expand_dims(ops.stack([verdict, loss, in_a_row]), 0)
        self._latest.assign(ops.concatenate([self._latest[1:], step]))

    def hide_empty_means(self, means: dict[str, Any]) -> dict[str, Any]:
        """Returns the means of the epoch so far, or NaN if it has had no good step.

        Keras would log 0, which looks like the best loss.
        """
        is_any_good = self._num_in_means > 0
        return {name: ops.where(is_any_good, mean, float("nan")) for name, mean in means.items()}

    def logs(self) -> dict[str, Any]:
        """Returns the number of skipped steps, as the log `skipped_steps`."""
        return {"skipped_steps": ops.convert_to_tensor(self._num_bad)}

    @property
    def num_bad(self) -> int:
        """The number of bad steps since the training began."""
        return int(ops.convert_to_numpy(self._num_bad.value))

    def read(self) -> list[StepRecord]:
        """Returns the step records of the last two executions, the newest last."""
        return [
            StepRecord(Verdict(int(verdict)), float(loss), int(in_a_row))
            for verdict, loss, in_a_row in ops.convert_to_numpy(self._latest.value)
        ]

    def update_state(self, *arguments: Any, **options: Any) -> None:
        """Does nothing, because the training step calls `judge` instead."""

    def result(self) -> dict[str, Any]:
        """Returns no logs, because the training step logs `logs()` instead."""
        return {}

    def reset_state(self) -> None:
        """Begins an epoch, which resets only the count of good steps for `hide_empty_means`."""
        self._num_in_means.assign(0.0)
