import contextlib
import random

import keras
import numpy as np
import pytest

from keras_deepseek.backend.data.random_state import read_random_state
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.checkpoints.training_state import read_variables
from keras_deepseek.training.tuning.short_training import ShortTraining

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")


class Steps(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.number = 0

    def on_train_batch_end(self, batch, logs=None):
        self.number += 1


def build(**settings):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.Adam(0.1, use_ema=True)
    model.compile(optimizer, settings.pop("loss", "mse"), metrics=["mae"], **settings)
    return model


def read(model):
    random_state = read_random_state()
    state = read_variables(model)
    arrays = [
        array for group in ("model", "optimizer", "metrics") for array in state[group]["values"]
    ]
    arrays += [random_state["keras"], random_state["python"]["words"]]
    arrays += [random_state["numpy"]["state"]["key"], random_state["numpy"]["state"]["pos"]]
    return arrays + list(random_state["framework"].values())


def test_everything_is_restored_to_the_bit():
    model = build()
    model.fit(X, X[:, :1], batch_size=4, verbose=0)
    old_arrays = read(model)
    training, steps = ShortTraining(model, contextlib.nullcontext), Steps()

    def train():
        with training.restored_state():
            training.fit(7, [steps], x=X, y=X[:, :1], batch_size=4)
            assert (model.get_weights()[0] != old_arrays[0]).any()
            random.random()
            raise ArithmeticError("no")

    with pytest.raises(ArithmeticError, match="no"):
        train()
    assert steps.number == 7
    for received, expected in zip(read(model), old_arrays, strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.torch_alone
def test_a_generator_is_gone_through_once():
    model, steps = build(), Steps()
    training = ShortTraining(model, contextlib.nullcontext)
    with training.restored_state():
        training.fit(7, [steps], x=((X, X[:, :1]) for _ in range(3)))
    assert steps.number == 3


@pytest.mark.torch_alone
def test_a_model_without_a_loss_is_refused():
    with pytest.raises(InvalidInputError, match="has no loss"):
        Trainer(build(loss=None)).find_learning_rate(X, X[:, :1])


def test_several_steps_in_one_execution_are_refused():
    with pytest.raises(InvalidInputError, match="the model runs 3 at once"):
        ShortTraining(build(steps_per_execution=3), contextlib.nullcontext).fit(3, [], x=X)
