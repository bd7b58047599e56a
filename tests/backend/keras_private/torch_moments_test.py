"""Canary: it fails when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.torch_moments import temporary_moments


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="It is that of PyTorch.")
def test_a_normalization_calls_the_function():
    def moments(x, axes, keepdims=False, synchronized=False):
        calls.append(axes)
        return keras.ops.zeros((3,)), keras.ops.ones((3,))

    calls = []
    layer = keras.layers.BatchNormalization()
    with temporary_moments(moments):
        layer(np.ones((2, 3)), training=True)
    layer(np.ones((2, 3)), training=True)
    assert len(calls) == 1
