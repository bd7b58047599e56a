"""Sharded optimizer state on the devices of one JAX program, whose compiler divides the update."""

from collections.abc import Callable, Sequence

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.optimizers import making_slots
from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.training.step.gradients.optimizer_parts import check_shardable, plain_optimizer


class OptimizerLayout:
    """The layout of an optimizer's variables over the devices that divide the batch (ZeRO).

    Each variable is divided along its largest axis that the number of devices divides.
    """

    def prepare(self, model: keras.Model, *, by_weight: bool) -> None:
        """Builds the optimizer of a model, and divides its variables as they are created."""
        optimizer = plain_optimizer(model)
        check_shardable(model, optimizer)

        def make(_: keras.Variable, create: Callable[[], keras.Variable]) -> keras.Variable:
            variable = create()
            backend.current().distribution.divide_variable(variable)
            return variable

        with making_slots(optimizer, make):
            model.optimizer.build(model.trainable_variables)

    def read_state(self, model: keras.Model) -> list[Array]:
        """Returns the whole values of all variables of the optimizer."""
        return read_values(model.optimizer.variables)

    def cut_state(self, model: keras.Model, values: Sequence[Array]) -> list[Array]:
        """Returns the values, of which each device takes its part when they are assigned."""
        return list(values)
