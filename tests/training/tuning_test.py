import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")


class Counting(Trainer):
    num_calls = 0

    def train_step(self, x, y=None, sample_weight=None):
        self.num_calls += 1
        return super().train_step(x, y, sample_weight)


@pytest.mark.parametrize(
    "try_out",
    [
        lambda trainer: trainer.find_learning_rate(X, X[:, :1], num_steps=10),
        lambda trainer: trainer.find_batch_size(X, X[:, :1], min_batch_size=4, max_batch_size=8),
        lambda trainer: trainer.measure_memory(X, X[:, :1], 8),
    ],
)
def test_searches_use_the_steps_of_the_trainer(try_out):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    trainer = Counting(model, optimizer="sgd", loss="mse")
    try_out(trainer)
    assert trainer.num_calls > 0


@pytest.mark.parametrize(
    ("search", "match"),
    [
        (lambda trainer: trainer.find_learning_rate(), "no training data: `x` is None"),
        (lambda trainer: trainer.find_batch_size(None), "no training data: `x` is None"),
        (lambda trainer: trainer.measure_memory(X), "The loss needs targets"),
        (lambda trainer: trainer.find_batch_size(X), "The loss needs targets"),
        (lambda trainer: trainer.find_learning_rate(X, X, class_weight=[1.0]), "`class_weight`"),
        (lambda trainer: trainer.evaluate(X), "The loss needs targets"),
    ],
)
def test_missing_data_are_named(search, match):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(InvalidInputError, match=match):
        search(Trainer(model, optimizer="sgd", loss="mse"))
