import keras
import numpy as np

from keras_deepseek.backend.keras_private.layer_tree import (
    inner_layers,
    is_container,
    own_variables,
)


class Own(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


class Holder(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.dropout = keras.layers.Dropout(0.5, seed=1)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.scale = self.add_weight(shape=())

    def call(self, inputs):
        return self.dropout(self.dense(inputs)) * self.scale


def test_a_layer_holds_its_own_layers_and_variables():
    holder = Holder()
    model = keras.Sequential([keras.Input((3,)), holder])
    model(np.ones((1, 3)))
    assert holder in inner_layers(model)
    assert holder.dense not in inner_layers(model)
    assert inner_layers(holder) == [holder.dense, holder.dropout]
    assert [id(each) for each in own_variables(holder)] == [id(holder.scale)]
    assert len(own_variables(holder.dense)) == 2
    assert own_variables(holder.dropout) == holder.dropout.variables  # Its seed.
    assert own_variables(model) == []


def test_models_that_only_hand_on_are_containers():
    layers = [keras.Input((3,)), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    assert is_container(model)
    assert is_container(keras.Model(model.inputs, model.outputs))
    assert not is_container(Own([keras.Input((3,)), keras.layers.Dense(2)]))
    assert not is_container(layers[1])
