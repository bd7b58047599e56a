"""`TimeDistributed` of a free length in graphs, which Keras gets wrong or refuses."""

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.time_distributed import fixed_time_distributed


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
