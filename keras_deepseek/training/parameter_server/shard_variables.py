"""The variables of one server, with their optimizer."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import count_update, exclude_from_decay
from keras_deepseek.training.parameter_server.messages import ShardPlan
from keras_deepseek.training.parameter_server.optimizer_slots import make_variable


class ShardVariables:
    """Trainable variables and their optimizer, created from a plan on the current device."""

    def __init__(self, plan: ShardPlan) -> None:
        self.weights = [make_variable(row.path, row.shape, row.dtype) for row in plan.variables]
        for variable, row in zip(self.weights, plan.variables, strict=True):
            variable.constraint = row.constraint
        # The class comes from the chief, and the config may hold a schedule.
        self.optimizer: keras.optimizers.Optimizer = plan.optimizer_class.from_config(  # type: ignore[attr-defined]
            plan.optimizer_config
        )
        rows = zip(self.weights, plan.variables, strict=True)
        exclude_from_decay(self.optimizer, [variable for variable, row in rows if not row.decays])
        self.optimizer.build(self.weights)
        self._update: Callable[[Sequence[Any]], None] = backend.current().step.compile_update(
            self.optimizer, self.weights
        )

    def update(self, gradients: Sequence[Any]) -> None:
        """Applies gradients to the variables by the optimizer.

        A gradient is `None` if the loss does not depend on the variable.
        """
        if any(gradient is not None for gradient in gradients):
            with warnings.catch_warnings():  # A loss need not depend on each variable.
                warnings.filterwarnings("ignore", "Gradients do not exist for variables")
                self._update(gradients)
        else:  # Keras refuses an update without gradients, but all servers must count the same.
            count_update(self.optimizer)
