"""One step of training, as Keras's loop on JAX takes it."""

from collections.abc import Callable, Sequence
from typing import Any

import keras


def make_train_step(
    model: keras.Model, step: Callable[[Any], dict[str, Any]]
) -> Callable[..., Any]:
    """Returns what Keras takes as the `train_step` of a model."""

    def train_step(state: Any, data: Any) -> Any:
        groups = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        mapping = [
            pair
            for variables, values in zip(groups, state, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with keras.StatelessScope(mapping) as scope:
            logs = step(data)
        return logs, tuple(
            [scope.get_current_value(variable) for variable in variables] for variables in groups
        )

    return train_step


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
) -> None:
    """Does what `optimizer.apply` does, in the fastest way that the framework has."""
    optimizer.apply(gradients, variables)
