"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.fixes import (
    fixed_batch_norm,
    fixed_resize,
    fixed_time_distributed,
)


def test_a_scale_of_ones_stands_for_none():
    x, mean, offset = (keras.Input(batch_shape=shape) for shape in ((9, 4, 3), (3,), (3,)))
    with pytest.raises(AttributeError):  # A canary: the fix can go once Keras takes `None`.
        ops.batch_normalization(x, mean, mean, -1, offset=offset)
    with fixed_batch_norm():
        outputs = ops.batch_normalization(x, mean, mean, -1, offset=offset)
    model = keras.Model([x, mean, offset], outputs)
    random = np.random.default_rng(0)
    arrays = [random.uniform(0.1, 1, size).astype("float32") for size in ((9, 4, 3), 3, 3)]
    x, mean, offset = map(ops.convert_to_tensor, arrays)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model([x, mean, offset])),
        ops.convert_to_numpy(ops.batch_normalization(x, mean, mean, -1, offset=offset)),
    )


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


class Masked(keras.layers.Layer):
    """A layer that reads a mask and knows of training."""

    supports_masking = True

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, inputs, training=None, mask=None):
        factor = 1.0 if mask is None else keras.ops.expand_dims(keras.ops.cast(mask, "float32"), -1)
        return inputs * factor * (2.0 if training else 1.0)


@pytest.fixture(params=["images", "masked", "recurrent"])
def distributed(request):
    """Returns a model whose length is free, and a batch for it."""
    generator = np.random.default_rng(0)
    if request.param == "images":
        inputs = keras.Input((None, 6, 6, 2), name="x")
        outputs = keras.layers.TimeDistributed(keras.layers.Conv2D(3, 3, padding="same"))(inputs)
        batch = generator.normal(size=(2, 5, 6, 6, 2))
    elif request.param == "recurrent":
        inputs = keras.Input((None, 4, 3), name="x")
        outputs = keras.layers.TimeDistributed(keras.layers.LSTM(2))(inputs)
        batch = generator.normal(size=(3, 2, 4, 3))
    else:
        inputs = keras.Input((None, 3), name="x")
        outputs = keras.layers.TimeDistributed(Masked())(keras.layers.Masking()(inputs))
        batch = generator.normal(size=(4, 3, 3))
        batch[:2, 1:] = 0.0
    return keras.Model(inputs, outputs), batch.astype("float32")


def test_all_steps_at_once_give_what_step_by_step_does(distributed):
    model, batch = distributed
    expected = keras.ops.convert_to_numpy(model(batch))
    with fixed_time_distributed():
        received = keras.ops.convert_to_numpy(model(batch))
    np.testing.assert_allclose(received, expected, atol=1e-6, rtol=1e-5)
    assert keras.layers.TimeDistributed.call.__module__.startswith("keras.")


def test_a_graph_computes_what_the_layer_is_meant_to(distributed):
    model, batch = distributed
    named = NamedModel(model)
    expected = backend.current().inference.plain_inference(named)({"x": batch})["output_0"]
    received = backend.current().inference.compile_inference(named)({"x": batch})["output_0"]
    np.testing.assert_allclose(received, expected, atol=1e-6, rtol=1e-5)
