"""Sizes that a program reads when it runs."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.graph.plans import Plan


class Reshaping(layers.Layer):
    def call(self, x):
        rows, length, width = ops.shape(x)
        flat = ops.reshape(x, (rows, length * width))
        ones = ops.broadcast_to(x[:1], (rows, length, width))
        return ops.reshape(flat, (rows, length, width)) + ones


LENGTHS = []


class Looping(layers.Layer):
    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        LENGTHS.append(x.shape[1])
        return ops.stack([x[:, step] * 2.0 for step in range(x.shape[1])], axis=1)


class Dividing(layers.Layer):
    def call(self, x):
        return ops.sum(x, axis=0, keepdims=True) / ops.shape(x)[0] + x


def plan_of(layer):
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, layer(inputs))
    example = keras.KerasTensor((2, 5, 4))
    return model, Plan(model, example, training=False, passes=(), opens_foreign=True)


@pytest.mark.each_backend
@pytest.mark.parametrize("layer", [Reshaping, lambda: layers.MultiHeadAttention(2, 3)])
def test_a_program_serves_all_sizes(layer):
    layer = layer()
    if isinstance(layer, keras.layers.MultiHeadAttention):
        inputs = keras.Input((None, 4))
        model = keras.Model(inputs, layer(inputs, inputs))
        plan = Plan(model, keras.KerasTensor((2, 5, 4)), training=False, passes=())
    else:
        model, plan = plan_of(layer)
    assert plan.fits([(9, 5, 4)])
    for shape in [(3, 5, 4), (1, 9, 4)]:
        if plan.fits([shape]):  # The product of two free sizes can't be read.
            x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape), "float32")
            np.testing.assert_allclose(
                ops.convert_to_numpy(plan.program(x)), ops.convert_to_numpy(model(x)), atol=1e-5
            )


def test_a_size_that_is_computed_with_is_fixed():
    _, plan = plan_of(Dividing())
    assert plan.fits([(2, 5, 4)])
    assert not plan.fits([(3, 5, 4)])
    assert plan.fits([(2, 8, 4)])


def test_a_loop_over_a_free_axis_is_not_traced_at_a_great_length():
    _, plan = plan_of(Looping())
    assert max(LENGTHS) < 1000
    assert plan.fits([(3, 5, 4)])
    assert not plan.fits([(3, 6, 4)])


def test_a_layer_for_each_time_step_is_whole_and_takes_any_length():
    _, plan = plan_of(layers.TimeDistributed(layers.Dense(3)))
    (leaf,) = plan.leaves.values()
    assert leaf.reason == "repeats its layer's operations for each time step"
    assert plan.fits([(3, 4099, 4)])
