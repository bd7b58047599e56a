"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np

from keras_deepseek.backend.keras_private.loss_and_metrics import (
    add_metric,
    compiled_metric_names,
    given_metric_variables,
    order_metrics,
    update_metrics,
    watch_metric_updates,
)


def test_metrics_are_ordered_as_evaluate_does():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", keras.metrics.MeanSquaredError(name="first")])
    x = np.ones((4, 2), "float32")
    expected = model.evaluate(x, x[:, :1], verbose=0)
    logs = model.evaluate(x, x[:, :1], verbose=0, return_dict=True)
    assert order_metrics(model, dict(sorted(logs.items()))) == expected


X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_metrics_of_a_models_own_are_heeded():
    class OwnMetrics(keras.Sequential):
        num_updates = 0

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.num_updates += 1
            return super().compute_metrics(x, y, y_pred, sample_weight)

    model = build(OwnMetrics)
    update_metrics(model, X, X[:, :1], model(X), None)
    assert model.num_updates == 1


def test_a_metric_is_a_models_for_as_long_as_it_is_lent():
    model, metric = build(), keras.metrics.Mean(name="lent")
    with add_metric(model, metric):
        assert metric in model.metrics
        assert model.metrics_variables[-2:] == metric.variables
    assert metric not in model.metrics


def test_the_metrics_that_a_model_was_compiled_with_are_heard():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    model.evaluate(x, y, verbose=0)
    assert compiled_metric_names(model) == ["mae"]
    with watch_metric_updates(model) as heard:
        model(x)
        assert not heard
        model.compute_metrics(x, y, model(x))
        assert heard
    assert "update_state" not in vars(model._compile_metrics)
    without = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    without.compile("sgd", "mse")
    with watch_metric_updates(without) as heard:
        assert heard
    assert compiled_metric_names(without) == []


def test_the_variables_of_metric_objects_are_known_before_the_first_batch():
    """Keras's private `_user_metrics` and `_user_weighted_metrics` hold them."""
    metric, weighted_metric = keras.metrics.MeanSquaredError(), keras.metrics.MeanAbsoluteError()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert given_metric_variables(model) == []
    model.compile("sgd", "mse", metrics=["mae", metric], weighted_metrics=[weighted_metric])
    variable_ids = {id(variable) for variable in given_metric_variables(model)}
    assert variable_ids == {
        id(variable) for compiled in (metric, weighted_metric) for variable in compiled.variables
    }
