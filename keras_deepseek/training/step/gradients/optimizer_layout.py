"""Sharded optimizer state on the devices of one JAX program, whose compiler divides the update."""

from collections.abc import Callable

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import making_slots, weight_slots
from keras_deepseek.backend.processes.processes import ProgramReplicas
from keras_deepseek.training.step.gradients.optimizer_parts import (
    check_shardable,
    leave_out_of_files,
)


class OptimizerLayout:
    """The layout of an optimizer's variables over the devices that divide the batch (ZeRO).

    Each variable is divided along its largest axis that the number of devices divides, beside the
    division of its weight.

    Args:
        replicas: The replicas that sum the gradients of several processes, or `None` if the
            compiler places the sums.
    """

    def __init__(self, replicas: ProgramReplicas | None) -> None:
        self._replicas = replicas
        self._weights: list[keras.Variable] = []

    def prepare(self, model: keras.Model, *, by_weight: bool) -> None:
        """Builds the optimizer of a model, and divides its variables as they are created."""
        check_shardable(model)
        # The layout of a weight is then that of its slots as well.
        backend.current().distribution.place_variables(model.variables)

        def make(_: keras.Variable, create: Callable[[], keras.Variable]) -> keras.Variable:
            variable = create()
            backend.current().distribution.divide_variable(variable)
            return variable

        with making_slots(model.optimizer, make):
            model.optimizer.build(model.trainable_variables)
        self._weights = list(model.trainable_variables)
        if self._replicas is not None:
            self._replicas.divide_gradients([slot for slot, _ in weight_slots(model.optimizer)])
            leave_out_of_files(model)

    def share(self) -> None:
        """Sends the updated parts of weights to all processes, many at once."""
        if self._replicas is not None:
            self._replicas.gather_weights(self._weights)
