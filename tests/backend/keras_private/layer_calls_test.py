"""Canaries: they fail when a Keras release moves a private name."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_deepseek.backend.keras_private.layer_calls import (
    profiled_calls,
    remember_call,
    repeatable,
    take_losses,
)


def build(layer_class=keras.Sequential, metrics=("mae",)):
    model = layer_class([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse", metrics=list(metrics))
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_call_that_is_remembered_is_in_training_mode_and_half_precision_again():
    modes = []

    class Inner(keras.layers.Layer):
        def call(self, inputs, training=False):
            modes.append(training)
            return inputs

    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.inner = Inner(dtype="mixed_bfloat16")
            self.again = None

        def build(self, input_shape):
            self.scale = self.add_weight(shape=())

        def call(self, inputs):
            def compute():
                return self.inner(inputs) * self.scale

            self.again = remember_call(compute)
            return compute()

    layer = Outer()
    layer(ops.ones((2,)), training=True)
    assert keras.backend.standardize_dtype(layer.again().dtype) == "bfloat16"
    assert modes == [True, True]


def test_a_repeated_call_assigns_nothing():
    state = keras.Variable(1.0, trainable=False)

    def add():
        state.assign_add(1.0)
        return ops.convert_to_numpy(state.value).item()

    again = repeatable(add, [state])
    assert again() == 2.0
    state.assign(10.0)
    assert again() == 2.0
    assert ops.convert_to_numpy(state.value) == 10.0


def test_the_losses_of_a_call_are_taken():
    outer = keras.Sequential([keras.layers.Identity()])

    def call():
        outer.add_loss(ops.ones(()))
        return 7

    outputs, (loss,) = take_losses(outer, call)()
    assert (outputs, float(loss)) == (7, 1.0)
    assert outer.losses == []


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
