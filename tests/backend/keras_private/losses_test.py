"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.keras_private.loss_and_metrics import (
    compute_training_loss,
    losses_in_float32,
    track_loss,
    update_metrics,
)

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_the_loss_of_a_model_holds_what_its_layers_add():
    model = build()
    y_pred = model(X)
    loss = ops.convert_to_numpy(compute_training_loss(model, X, X[:, :1], y_pred, None))
    kernel = model.get_weights()[0]
    predicted = ops.convert_to_numpy(y_pred)
    np.testing.assert_allclose(
        loss, np.mean((predicted - X[:, :1]) ** 2) + 0.01 * np.sum(kernel**2), rtol=1e-5
    )


def test_the_metrics_of_a_model_and_the_mean_of_its_loss_are_told_of_a_batch():
    model = build()
    y_pred = model(X)
    update_metrics(model, X, X[:, :1], y_pred, None)
    track_loss(model, 2.0, 3)
    track_loss(model, 6.0, 1)
    results = model.get_metrics_result()
    assert float(results["loss"]) == 3.0
    expected = np.abs(ops.convert_to_numpy(y_pred) - X[:, :1]).mean()
    np.testing.assert_allclose(float(results["mae"]), expected, rtol=1e-5)


def test_losses_have_outputs_and_what_layers_add_in_float32():
    dtypes = []

    class Watched(keras.Model):
        def call(self, inputs):
            self.add_loss(ops.cast(ops.mean(inputs), "float16"))
            return ops.cast(inputs, "float16")

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            dtypes.append(keras.backend.standardize_dtype(y_pred.dtype))
            return {}

    model = Watched()
    model.compile("sgd", "mse")
    x = np.ones((2, 3), "float32")
    outputs = model(x)
    with losses_in_float32(model):
        loss = model.compute_loss(x, x, outputs)
        model.compute_metrics(x, x, outputs)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == 1.0
    model.compute_metrics(x, x, outputs)
    assert dtypes == ["float32", "float16"]
