"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.keras_private.trainers import (
    build_for_training,
    call_for_training,
    compilation,
    compile_arguments,
    count_samples,
    count_train_steps,
    epoch_logs,
    is_validation_of_fit,
    overrides_train_step,
    public_evaluate_options,
    read_learning_rate,
    temporary_train_step,
)


def test_the_objects_that_a_model_was_compiled_with_are_kept():
    def loss(y_true, y_pred):
        return keras.ops.mean(y_pred)

    metric = keras.metrics.MeanSquaredError()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss, metrics=[metric], steps_per_execution=2)
    arguments = compile_arguments(model)
    assert arguments["loss"] is loss
    assert arguments["metrics"][0] is metric
    assert arguments["steps_per_execution"] == 2


def test_a_compiled_model_is_built_with_its_optimizer_and_metrics():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    build_for_training(model, (keras.KerasTensor((3, 4)), keras.KerasTensor((3, 2))))
    assert [tuple(weight.shape) for weight in model.weights] == [(4, 2), (2,)]
    assert model.optimizer.built
    assert len(model.metrics_variables) == 4


def test_steps_samples_and_the_rate_are_read_while_a_training_goes_on():
    class Reading(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            readings.append((batch, count_samples(self._model), read_learning_rate(self._model)))

    readings = []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25, gradient_accumulation_steps=2), "mse")
    data = (np.ones((7, 2), "float32"), np.ones((7, 1), "float32"))
    model.fit(*data, batch_size=3, epochs=2, verbose=0, callbacks=[Reading()])
    assert readings == [(0, None, 0.25), (1, 3.0, 0.25), (2, 6.0, 0.25)] * 2
    assert count_train_steps(model) == 6


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_fit_says_that_it_evaluates_for_its_validation():
    model, calls = build(), []
    model.evaluate = lambda *arguments, **options: calls.append(options) or {"loss": 0.0}
    x, y = np.ones((6, 4)), np.ones((6, 1))
    model.fit(x, y, validation_data=(x, y), batch_size=2, verbose=0)
    (options,) = calls
    assert is_validation_of_fit(options)
    public = public_evaluate_options(options)
    assert {"x", "y", "batch_size"} <= {*public}
    assert not {name for name in public if name.startswith("_")}


def test_a_step_of_the_models_own_is_seen():
    class OwnStep(keras.Sequential):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    model = build()
    assert not overrides_train_step(model)
    model.train_step = print
    assert overrides_train_step(model)
    assert overrides_train_step(build(OwnStep))


def test_a_step_is_lent():
    model = build()
    with temporary_train_step(model, print):
        assert model.train_step is print
        with temporary_train_step(model, repr):
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
        output = call_for_training(model, ops.zeros((1,)))
        np.testing.assert_array_equal(ops.convert_to_numpy(output), [expected])


def test_an_epoch_logs_its_means_or_what_else_its_last_step_has_logged():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert epoch_logs(model, {"loss": 7.0}) == model.get_metrics_result()
    assert epoch_logs(model, {"loss": 7.0, "other": 1.0}) == {"loss": 7.0, "other": 1.0}


def test_each_compilation_of_a_model_is_another():
    model = build()
    first = compilation(model)
    assert compilation(model) is first
    model.compile("adam", "mse")
    assert compilation(model) is not first
