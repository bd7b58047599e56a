import cProfile
import pstats

import keras
import pytest
from keras import layers, ops

from keras_deepseek.graph.passes import PASSES
from keras_deepseek.graph.trace import trace_model

LENGTH, DIM = 6, 8


class Blocks(layers.Layer):
    """Residual blocks without biases: long chains of products, factors and sums."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def build(self, shape):
        self.kernels = [self.add_weight(shape=(DIM, DIM)) for _ in range(self.number)]

    def call(self, x):
        for kernel in self.kernels:
            hidden = ops.relu(ops.matmul(x, ops.transpose(kernel)))
            hidden = ops.matmul(hidden, kernel) + ops.matmul(hidden, kernel)
            x = ops.transpose(ops.transpose(x + hidden, (0, 2, 1)), (0, 2, 1)) * 0.5
        return x


def count_calls(name, number):
    """Returns the number of Python calls of a pass over a model of blocks."""
    inputs = keras.Input((LENGTH, DIM))
    model = keras.Model(inputs, Blocks(number)(inputs)[:, 0])
    graph = trace_model(model, keras.KerasTensor((3, LENGTH, DIM)), training=False)
    profile = cProfile.Profile()
    profile.runcall(list, PASSES[name](graph, False))
    return pstats.Stats(profile).total_calls


@pytest.mark.nightly
@pytest.mark.parametrize("name", PASSES)
def test_passes_are_linear_in_the_blocks(name):
    assert count_calls(name, 200) < 2.3 * count_calls(name, 100)
