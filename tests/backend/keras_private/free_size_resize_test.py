"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.free_size_resize import fixed_resize


def test_maps_of_free_size_are_made_larger():
    inputs = keras.Input((None, None, 2), name="x")
    layer = keras.layers.UpSampling2D((2, 3), interpolation="bilinear")
    named = NamedModel(keras.Model(inputs, layer(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 2)).astype("float32")
    expected = backend.current().inference.plain_inference(named)({"x": x})
    if keras.backend.backend() == "tensorflow":  # Keras itself fails in such a graph.
        import tensorflow as tf

        spec = tf.TensorSpec((None, None, None, 2), name="x")
        graph = tf.function(
            lambda x: named.trace({"x": x}), autograph=False, input_signature=[spec]
        )
        received = graph(x)
    else:
        received = named.trace({"x": keras.ops.convert_to_tensor(x)})
    for name, array in expected.items():
        np.testing.assert_allclose(keras.ops.convert_to_numpy(received[name]), array, atol=1e-5)


def test_a_size_that_is_known_is_checked_as_before():
    resize = keras.ops.image.resize
    with fixed_resize(), pytest.raises(ValueError, match="tuple of 2 integers"):
        keras.ops.image.resize(np.ones((2, 2, 1)), (2,))
    assert keras.ops.image.resize is resize


def test_a_resize_by_the_operation_is_that_of_the_function():
    images = np.arange(16.0, dtype="float32").reshape(1, 4, 4, 1)
    expected = keras.ops.image.resize(images, (8, 6))
    received = keras.src.ops.image.Resize((8, 6)).call(images)
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (received, expected)))
    assert keras.src.ops.image.resize is keras.ops.image.resize
