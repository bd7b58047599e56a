"""Canaries: they fail when a Keras release moves a private name."""

import contextlib

import keras
import numpy as np

from keras_deepseek.backend.keras_private.profiled_calls import profiled_calls


def test_calls_are_marked_until_the_block_ends():
    marks = []

    @contextlib.contextmanager
    def mark(name):
        marks.append(name)
        yield

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="head")], name="all")
    model.compile("sgd", "mse", metrics=["mae"])
    x, y = np.ones((3, 2), "float32"), np.ones((3, 1), "float32")
    layer_call = vars(keras.Layer)["__call__"]
    with profiled_calls(lambda layer: mark(layer.name), lambda: mark("loss"), lambda: mark("step")):
        outputs = model(x)
        model.compute_loss(x, y, outputs)
        model.compute_metrics(x, y, outputs)
        keras.losses.MeanSquaredError()(y, outputs)
        variables = model.trainable_variables
        model.optimizer.apply(
            [keras.ops.zeros(variable.shape) for variable in variables], variables
        )
    assert vars(keras.Layer)["__call__"] is layer_call
    assert {"all", "head", "loss", "step"} <= set(marks)
    assert marks.count("loss") >= 3
