"""Canaries: what these say is broken when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_internals import (
    attend,
    attention_projections,
    compile_arguments,
    first_call_shapes,
    flatten_layers,
    uses_flash_attention,
)


def test_layers_inside_layers_are_found():
    inputs = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    recurrent = keras.layers.LSTM(3)
    model = keras.Model(inputs, recurrent(attention(inputs, inputs)))
    found = flatten_layers(model)
    assert model in found
    assert recurrent.cell in found
    assert "query" in [layer.name for layer in found]


def test_the_shapes_of_the_first_call_are_kept():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    assert first_call_shapes(model) == {}
    model(keras.ops.zeros((3, 4)))
    assert [tuple(shape) for shape in first_call_shapes(model).values()] == [(3, 4)]


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


@pytest.mark.parametrize(
    "attention",
    [keras.layers.MultiHeadAttention(2, 3), keras.layers.GroupQueryAttention(3, 2, 2)],
)
def test_the_parts_of_an_attention_layer_make_the_whole(attention):
    inputs = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    expected = attention(inputs, inputs, use_causal_mask=True)
    parts = attention_projections(attention)
    assert list(parts) == ["query", "key", "value", "output"]
    projected = [parts[name](inputs) for name in ("query", "key", "value")]
    heads = attend(attention, *projected, np.tri(4, dtype=bool)[None], training=False)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(parts["output"](heads)),
        keras.ops.convert_to_numpy(expected),
        atol=1e-6,
    )


def test_a_layer_says_whether_it_was_told_to_use_flash_attention():
    for choice in (None, False, True):
        attention = keras.layers.MultiHeadAttention(2, 3, flash_attention=choice)
        assert uses_flash_attention(attention) == bool(choice)
