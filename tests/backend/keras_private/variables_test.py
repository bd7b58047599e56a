"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.variables import (
    keras_torch_device,
    place_by_layout,
    raw_value,
    set_raw_value,
)


def test_the_tensor_inside_a_variable_is_read_and_replaced():
    variable, other = keras.Variable(np.ones(2)), keras.Variable(np.zeros(2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(raw_value(variable)), np.ones(2))
    set_raw_value(variable, raw_value(other))
    assert raw_value(variable) is raw_value(other)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.zeros(2))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras has layouts on JAX alone.")
def test_a_variable_from_outside_gets_the_layout_of_a_distribution():
    variable = keras.Variable(np.ones(2))
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    with keras.distribution.DataParallel(device_mesh=mesh).scope():
        place_by_layout(variable)
    assert variable._layout is not None
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.ones(2))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others ask the framework.")
def test_the_device_of_keras_is_known():
    with keras.device("cpu"):
        assert keras_torch_device() == "cpu"
