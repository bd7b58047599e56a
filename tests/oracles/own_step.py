"""Trainings by a step of the model's own, killed and resumed."""

import keras
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.training import Trainer
from tests.oracles.interruption import EndAt, KilledError


def apply(optimizer, compute, variables, states):
    """Updates variables by the gradients of a loss, and returns the loss."""

    def compute_twice():
        loss = compute()
        return loss, ops.stop_gradient(loss)

    loss, backward = backend.current().step.differentiate(compute_twice, variables, states)
    optimizer.apply(backward(), variables)
    return loss


class StepOfItsOwn:
    """A mixin of models: their `make_step`, from data to logs, is the step on each backend."""

    if keras.backend.backend() == "jax":

        def train_step(self, state, data):
            groups = (
                self.trainable_variables,
                self.non_trainable_variables,
                self.optimizer.variables,
                self.metrics_variables,
            )
            mapping = [
                pair
                for group_pair in zip(groups, state, strict=True)
                for pair in zip(*group_pair, strict=True)
            ]
            with keras.StatelessScope(mapping) as scope:
                logs = self.make_step(data)
            return logs, tuple(
                [scope.get_current_value(variable) for variable in group] for group in groups
            )

    else:

        def train_step(self, data):
            return self.make_step(data)


def train_killed_and_whole(make, folder, x, **options):
    """Returns a model that was killed and resumed, and one that was not."""

    def trainer(name):
        return Trainer(make, checkpoint_dir=folder / name, checkpoint_every=1, seed=3)

    options = {"epochs": 2, "verbose": 0, **options}
    whole, killed, resumed = trainer("whole"), trainer("killed"), trainer("killed")
    whole.fit(x, **options)
    with pytest.raises(KilledError):
        killed.fit(x, **options, callbacks=[EndAt(3)])
    resumed.fit(x, **options, resume=True)
    return resumed.model, whole.model
