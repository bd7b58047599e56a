import keras
import numpy as np
from keras import ops

from keras_deepseek.backend import current

X = np.array([1.0, 2.0, 3.0], "float32")
Y = np.array([0.5, -1.0, 4.0], "float32")


def test_gradients_come_by_input_and_by_variable():
    weight = keras.Variable(np.array([2.0, 3.0, 5.0], "float32"))
    by_input, by_variable = current().compute_gradients(
        lambda x, y: ops.sum(x * x * weight + y), [X, Y], [weight]
    )
    np.testing.assert_allclose(by_input[0], 2 * X * np.array([2.0, 3.0, 5.0]), rtol=1e-6)
    np.testing.assert_array_equal(by_input[1], np.ones(3))
    np.testing.assert_allclose(by_variable[0], X * X, rtol=1e-6)


def test_what_the_function_does_not_use_has_a_gradient_of_zero():
    unused = keras.Variable(np.ones((2, 2), "float32"))
    by_input, by_variable = current().compute_gradients(lambda x, y: ops.sum(x), [X, Y], [unused])
    np.testing.assert_array_equal(by_input[1], np.zeros(3))
    np.testing.assert_array_equal(by_variable[0], np.zeros((2, 2)))


def test_a_function_of_nothing_at_all_has_gradients_of_zero():
    by_input, by_variable = current().compute_gradients(
        lambda x: ops.sum(ops.stop_gradient(x)), [X], []
    )
    np.testing.assert_array_equal(by_input[0], np.zeros(3))
    assert by_variable == []


def test_the_gradient_of_an_embedding_is_dense():
    table = keras.Variable(np.ones((4, 2), "float32"))
    _, (gradient,) = current().compute_gradients(
        lambda x: ops.sum(ops.take(table, [1, 1, 3], axis=0)) + ops.sum(x), [X], [table]
    )
    np.testing.assert_array_equal(gradient, [[0, 0], [2, 2], [0, 0], [1, 1]])


def test_neither_inputs_nor_variables_are_changed():
    weight = keras.Variable(Y)
    x = X.copy()
    current().compute_gradients(lambda x: ops.sum(x * weight), [x], [weight])
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(ops.convert_to_numpy(weight), Y)
