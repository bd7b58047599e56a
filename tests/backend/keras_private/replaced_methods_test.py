"""Canaries: they fail when a Keras release moves a private name."""

import threading

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.backend.keras_private.replaced_methods import (
    replaced_methods,
    without_replacement,
)
from keras_deepseek.backend.keras_private.torch_functions import torch_functions


def add_one(original, *args, **kwargs):
    return original(*args, **kwargs) + 1


def test_a_method_is_replaced_for_one_context():
    layer, original = layers.Dense(2, kernel_initializer="ones"), layers.Dense.call
    inputs = np.ones((1, 3), "float32")
    expected = keras.ops.convert_to_numpy(layer(inputs))
    others = []
    with replaced_methods({(layers.Dense, "call"): add_one}):
        with replaced_methods({(layers.Dense, "call"): add_one}):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(inputs)), expected + 1)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(inputs)), expected + 1)
        thread = threading.Thread(target=lambda: others.append(layer(inputs)))
        thread.start()
        thread.join()
        assert without_replacement(layers.Dense.call) is original is not layers.Dense.call
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(others[0]), expected)
    assert layers.Dense.call is original is without_replacement(original)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="These functions are PyTorch's.")
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("max_pool", layers.MaxPooling2D()),
        ("average_pool", layers.AveragePooling2D(2)),
        ("adaptive_max_pool", layers.AdaptiveMaxPooling2D(2)),
        ("adaptive_average_pool", layers.AdaptiveAveragePooling2D(2)),
        ("conv_transpose", layers.Conv2DTranspose(2, 3)),
    ],
)
def test_layers_call_the_functions_of_keras_s_backend(name, layer):
    inputs = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype("float32")
    expected = keras.ops.convert_to_numpy(layer(inputs))
    with replaced_methods(torch_functions(**{name: add_one})):
        actual = keras.ops.convert_to_numpy(layer(inputs))
    np.testing.assert_allclose(actual, expected + 1, rtol=1e-6)
