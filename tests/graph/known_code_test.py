"""Layers that users write: `optimize_graph` and `graph.optimize` are never another model."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek import graph
from keras_deepseek.training import Trainer
from tests.oracles.foreign_layers import FACTOR, FORMS

pytestmark = pytest.mark.filterwarnings("ignore:.*You are using a softmax over axis:UserWarning")

FEW = ["triples_length_one", "reverses_the_gradient"]
FEW_ON_TORCH = ["keeps_a_running_mean", "counts_values", "draws_without_a_seed", "counts_calls"]
LENGTHS = (6, 1) if keras.backend.backend() == "jax" else (6, 1, 3, 9)  # JAX compiles each.


def draw(rows, length):
    return np.random.default_rng(length).normal(size=(rows, length, 4)).astype("float32")


def build(name):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((None, 4))
    x = layers.Dense(4)(x)
    layer = FORMS[name]()
    x = layer(x)
    x = x + layers.Dense(4, use_bias=False)(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(1)(x[:, 0])), layer


class SetFlag(keras.callbacks.Callback):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def on_train_batch_begin(self, batch, logs=None):
        self.layer.flag = float(batch)
        FACTOR["value"] = 1.0 + 0.3 * batch
        if isinstance(self.layer, layers.LeakyReLU):
            self.layer.negative_slope = 0.3 + 0.3 * batch


def train(name, **options):
    """Returns all that a training at several lengths leaves, and the layer's own attributes."""
    FACTOR["value"] = 1.0
    model, layer = build(name)
    trainer = Trainer(model, optimizer=keras.optimizers.SGD(1e-3), loss="mse", seed=1, **options)
    numbers = []
    for length in LENGTHS:
        x = draw(12, length)
        history = trainer.fit(
            x, np.ones((12, 1)), batch_size=8, epochs=2, verbose=0, callbacks=[SetFlag(layer)]
        )
        numbers += [history.history["loss"], model.predict(x, verbose=0)]
    state = keras.tree.flatten([getattr(layer, name, 0.0) for name in ("count", "mean", "seen")])
    state = [value for value in state if not isinstance(value, layers.Layer)]
    return [*numbers, *model.get_weights(), *map(np.asarray, state)]


def check_training(name):
    expected, received = train(name), train(name, optimize_graph=True)
    for expected_array, received_array in zip(expected, received, strict=True):
        np.testing.assert_allclose(
            received_array, expected_array, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.each_backend
@pytest.mark.parametrize("names", [FEW, FEW_ON_TORCH])
def test_training_by_programs_is_that_of_the_model(names):
    for name in filter(FORMS.get, names):
        check_training(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FORMS)
def test_training_of_each_layer_by_programs_is_that_of_the_model(name):
    check_training(name)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:graph.optimize returns the original")
@pytest.mark.parametrize("name", FORMS)
def test_each_layer_is_the_same_at_other_sizes(name):
    model, _ = build(name)
    twin, _ = build(name)
    optimized = graph.optimize(twin, draw(2, 8), measure=False)
    for rows, length in [(2, 8), (2, 1), (1, 8), (3, 5), (1, 1), (6, 11)]:
        x = draw(rows, length)
        np.testing.assert_allclose(
            optimized.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-5
        )
