"""Each count is compared with the formula of its operation."""

import keras
import numpy as np
import pytest

from keras_deepseek import backend


def count(layers, x):
    """Returns the count of the forward pass of layers that are called one after the other."""
    inputs = keras.Input(x.shape[1:])
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    return backend.current().count_flops(
        lambda trainable, other, x: model.stateless_call(trainable, other, x)[0],
        [variable.value for variable in model.trainable_variables],
        [variable.value for variable in model.non_trainable_variables],
        keras.ops.convert_to_tensor(x),
    )


def test_a_matrix_product():
    assert count([keras.layers.Dense(7)], np.ones((3, 5), "float32")) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(("groups", "in_a_group"), [(1, 4), (2, 2)])
def test_a_convolution(groups, in_a_group):
    layer = keras.layers.Conv2D(6, 3, padding="same", groups=groups)
    assert count([layer], np.ones((2, 5, 4, 4), "float32")) == 2 * (2 * 5 * 4 * 6) * 9 * in_a_group


def test_a_depthwise_convolution():
    layer = keras.layers.DepthwiseConv2D(3, padding="same")
    assert count([layer], np.ones((2, 5, 4, 3), "float32")) == 2 * (2 * 5 * 4 * 3) * 9


def test_attention():
    attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4)
    projections = 4 * 2 * (3 * 6 * 5 * 8)
    attending = 2 * 2 * (3 * 2 * 6 * 6 * 4)

    class SelfAttention(keras.Layer):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def call(self, x):
            return self.attention(x, x)

    found = count([SelfAttention()], np.ones((3, 6, 5), "float32"))
    assert found == projections + attending


def test_the_sum_of_products_with_an_ellipsis():
    def function(x, y):
        return keras.ops.einsum("...ij,jk->...ik", x, y)

    tensors = [keras.ops.ones((2, 3, 4, 5)), keras.ops.ones((5, 6))]
    assert backend.current().count_flops(function, *tensors) == 2 * (2 * 3 * 4) * 5 * 6


def test_a_function_that_is_compiled_by_itself_counts_too():
    compiled = keras.ops.matmul
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(keras.ops.matmul)
    elif keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(keras.ops.matmul)
    tensors = [keras.ops.ones((3, 4)), keras.ops.ones((4, 5))]
    assert backend.current().count_flops(compiled, *tensors) == 2 * 3 * 4 * 5


def test_a_loop_of_known_length_counts_as_often_as_it_runs():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("In a graph of TensorFlow the body of a loop counts once.")

    def function(x):
        return keras.ops.scan(lambda carry, _: (keras.ops.matmul(carry, carry), None), x, length=3)

    assert backend.current().count_flops(function, keras.ops.ones((4, 4))) == 3 * 2 * 4**3
