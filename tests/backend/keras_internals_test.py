"""Canaries: what these say is broken when a Keras release moves a private name."""

import keras

from keras_deepseek.backend.keras_internals import first_call_shapes, flatten_layers


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
