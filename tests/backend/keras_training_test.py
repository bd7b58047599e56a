"""Canaries: what these say is broken when a Keras release moves a private name."""

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.keras_training import (
    call_for_training,
    compute_training_loss,
    lent_train_step,
    nested_stateless_scope,
    output_masks,
    own_train_step,
    track_loss,
    update_metrics,
)

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_scope_inside_another_sees_what_that_one_has_set():
    first = keras.Variable(1.0, trainable=False)
    second = keras.Variable(2.0, trainable=False)
    with keras.StatelessScope([(first, ops.convert_to_tensor(10.0))]) as outer:
        first.assign(11.0)
        with nested_stateless_scope([(second, ops.convert_to_tensor(20.0))]) as inner:
            assert float(first.value) == 11.0
            second.assign(first + second)
        assert float(inner.get_current_value(second)) == 31.0
        assert outer.get_current_value(second) is None
    assert float(second.value) == 2.0


def test_a_step_of_the_models_own_is_seen():
    class OwnStep(keras.Sequential):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    model = build()
    assert not own_train_step(model)
    model.train_step = print
    assert own_train_step(model)
    assert own_train_step(build(OwnStep))


def test_a_step_is_lent():
    model = build()
    with lent_train_step(model, print):
        assert model.train_step is print
        with lent_train_step(model, repr):
            assert model.train_step is repr
        assert model.train_step is print
    assert "train_step" not in vars(model)


def test_a_model_is_called_in_training_mode_where_it_knows_one():
    class Plain(keras.Model):
        def call(self, inputs):
            return inputs + 1

    class Knowing(keras.Model):
        def call(self, inputs, training=False):
            return inputs + (2 if training else 1)

    for model, expected in ((Plain(), 1.0), (Knowing(), 2.0)):
        found = call_for_training(model, ops.zeros((1,)))
        np.testing.assert_array_equal(ops.convert_to_numpy(found), [expected])


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


def test_metrics_of_a_models_own_are_heeded():
    class OwnMetrics(keras.Sequential):
        seen = 0

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.seen += 1
            return super().compute_metrics(x, y, y_pred, sample_weight)

    model = build(OwnMetrics)
    update_metrics(model, X, X[:, :1], model(X), None)
    assert model.seen == 1


def test_metrics_see_the_mask_of_an_output():
    tokens = np.array([[1, 2, 0]])
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(4, 2, mask_zero=True), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    y_pred = model(tokens)
    (mask,) = output_masks(y_pred)
    np.testing.assert_array_equal(ops.convert_to_numpy(mask), tokens != 0)
    update_metrics(model, tokens, np.zeros((1, 3, 1)), y_pred, None)
    expected = np.abs(ops.convert_to_numpy(y_pred)[0, :2]).mean()
    np.testing.assert_allclose(float(model.get_metrics_result()["mae"]), expected, rtol=1e-5)


def test_an_output_without_a_mask_has_none():
    assert output_masks({"a": ops.ones((2,)), "b": [ops.ones((2,))]}) == [None, None]
