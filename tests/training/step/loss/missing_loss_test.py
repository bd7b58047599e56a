import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.loss.batch_loss import missing_loss_error
from keras_deepseek.training.trainer import Trainer

X = np.ones((8, 4), "float32")


class Penalty(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def build(*layers):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), *layers])


def test_the_error_says_what_to_pass():
    assert "pass Trainer(..., loss=...)" in str(missing_loss_error(build()))


def test_a_model_without_a_loss_is_refused_and_keeps_its_weights():
    model = build()
    weights = model.get_weights()
    with pytest.raises(InvalidInputError, match="has no loss"):
        Trainer(model, optimizer="sgd").fit(X, np.zeros((8, 3)), epochs=3, verbose=0)
    for old_weight, new_weight in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old_weight, new_weight)


def test_a_loss_that_a_layer_adds_is_enough():
    losses = Trainer(build(Penalty()), optimizer="sgd").fit(X, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]


def test_a_loss_that_a_layer_adds_may_be_0():
    class Nothing(Penalty):
        def call(self, inputs):
            self.add_loss(0.0 * keras.ops.mean(inputs))
            return inputs

    history = Trainer(build(Nothing()), optimizer="sgd").fit(X, epochs=2, verbose=0).history
    assert history["loss"] == [0.0, 0.0]


def test_a_validation_without_a_loss_is_refused():
    class Own(Trainer):
        def train_step(self, x, y=None, sample_weight=None):
            return keras.ops.mean(keras.ops.square(self.model(x, training=True)))

    x, y = np.ones((8, 4)), np.ones((8, 1))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    trainer = Own(model, optimizer="sgd")
    weights = model.get_weights()
    for options in ({"validation_data": (x, y)}, {"validation_split": 0.5}):
        with pytest.raises(InvalidInputError, match="Validation and evaluation need one"):
            trainer.fit(x, y, verbose=0, **options)
    with pytest.raises(InvalidInputError, match="Validation and evaluation need one"):
        trainer.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], weights[0])


def test_losses_of_layers_are_enough_for_a_validation():
    x = np.ones((8, 4))
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(1),
            keras.layers.ActivityRegularization(l2=1.0),
        ]
    )
    history = Trainer(model, optimizer="sgd").fit(x, validation_data=(x,), verbose=0).history
    assert history["val_loss"][0] > 0
