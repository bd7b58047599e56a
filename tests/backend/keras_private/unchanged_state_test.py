import keras
import numpy as np

from keras_deepseek.backend.keras_private.unchanged_state import unchanged_state


class Counter(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x * self.calls


def test_what_calls_count_is_put_back():
    layer = Counter()
    model = keras.Sequential([keras.Input((2,)), layer])
    model(np.ones((1, 2)))
    num_calls = float(layer.calls)
    with unchanged_state(model):
        model(np.ones((1, 2)))
        assert float(layer.calls) == num_calls + 1
    assert float(layer.calls) == num_calls
