"""Trainings by a step of the model's own, killed and resumed."""

import keras
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.training import Trainer


def apply(optimizer, compute, variables, states):
    """Updates variables by the gradients of a loss, and returns the loss."""

    def compute_twice():
        loss = compute()
        return loss, ops.stop_gradient(loss)

    loss, backward = backend.current().differentiate(compute_twice, variables, states)
    optimizer.apply(backward(), variables)
    return loss


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_at(step):
    left = [step]

    def count(batch, logs):
        left[0] -= 1
        if not left[0]:
            raise KilledError

    return keras.callbacks.LambdaCallback(on_train_batch_end=count)


def train_killed_and_whole(make, folder, x, **options):
    """Returns a model that was killed and resumed, and one that was not."""

    def trainer(name):
        return Trainer(make, checkpoint_dir=folder / name, checkpoint_every=1, seed=3)

    options = {"epochs": 2, "verbose": 0, **options}
    whole, killed, resumed = trainer("whole"), trainer("killed"), trainer("killed")
    whole.fit(x, **options)
    with pytest.raises(KilledError):
        killed.fit(x, **options, callbacks=[kill_at(3)])
    resumed.fit(x, **options, resume=True)
    return resumed.model, whole.model
