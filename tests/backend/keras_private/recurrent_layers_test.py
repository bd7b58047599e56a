"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek.backend.keras_private.recurrent_layers import replaced_inner_loops


class OwnLoop(layers.GRU):
    def inner_loop(self, *arguments, **options):
        return super().inner_loop(*arguments, **options)


@pytest.mark.parametrize(
    "make_layer",
    [
        lambda: layers.LSTM(2),
        lambda: layers.GRU(2),
        lambda: layers.SimpleRNN(2),
        lambda: layers.RNN(layers.LSTMCell(2)),
        lambda: OwnLoop(2),
    ],
)
def test_it_is_called_for_the_loop_of_keras_s_layers(make_layer):
    calls, layer = [], make_layer()

    def run(loop, layer, sequences, initial_state, mask, training):
        calls.append((layer, tuple(sequences.shape), len(keras.tree.flatten(initial_state))))
        last_output, outputs, states = loop(sequences, initial_state, mask, training)
        return last_output + 1, outputs, states

    inputs = np.ones((3, 4, 5), "float32")
    expected = keras.ops.convert_to_numpy(layer(inputs))
    with replaced_inner_loops(run):
        actual = keras.ops.convert_to_numpy(layer(inputs))
    is_known = not isinstance(layer, OwnLoop)
    np.testing.assert_array_equal(actual, expected + is_known)
    num_states = len(keras.tree.flatten(layer.cell.state_size))
    assert calls == [(layer, (3, 4, 5), num_states)] * is_known
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(inputs)), expected)
