import keras
import numpy as np
import pytest
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


def double(x, y, labels):
    return 2 * x * y * ops.cast(labels, "float32")


def point_up(upstream, x, y, labels):
    """Not the gradient of `double`, so that it is seen which of the two is taken."""
    return upstream + x, upstream * ops.cast(labels, "float32")


LABELS = np.array([1, 2, 3], "int32")
DIRECTION = np.array([1.0, 0.5, 2.0], "float32")


def call_with_gradient(x, y):
    labels = ops.convert_to_tensor(LABELS)
    results = current().apply_with_gradient(double, point_up, [x, y], [labels])
    return ops.sum(ops.multiply(results, DIRECTION))


def test_a_gradient_that_is_given_is_taken():
    x, y = (ops.convert_to_tensor(array) for array in (X, Y))
    assert float(call_with_gradient(x, y)) == pytest.approx((2 * X * Y * LABELS * DIRECTION).sum())
    (by_x, by_y), _ = current().compute_gradients(call_with_gradient, [X, Y], [])
    np.testing.assert_allclose(by_x, DIRECTION + X, rtol=1e-6)
    np.testing.assert_allclose(by_y, DIRECTION * LABELS, rtol=1e-6)


def test_what_is_computed_again_takes_its_gradient_too():
    """As in a layer that a `keras.RematScope` is around."""
    (by_x, by_y), _ = current().compute_gradients(keras.remat(call_with_gradient), [X, Y], [])
    np.testing.assert_allclose(by_x, DIRECTION + X, rtol=1e-6)
    np.testing.assert_allclose(by_y, DIRECTION * LABELS, rtol=1e-6)


def test_the_gradients_of_what_assigns_variables_come_with_its_other_results():
    weight, count = (
        keras.Variable(np.array([2.0, 3.0], "float32")),
        keras.Variable(1.0, trainable=False),
    )
    unused = keras.Variable(5.0)

    def compute():
        count.assign_add(1.0)
        return ops.sum(weight * weight) * count, {"count": count + 10.0}

    others, backward = current().differentiate(compute, [weight, unused], [count])
    assert float(others["count"]) == 12.0
    by_weight, by_unused = backward()
    assert float(ops.convert_to_numpy(count.value)) == 2.0
    np.testing.assert_allclose(ops.convert_to_numpy(by_weight), [8.0, 12.0], rtol=1e-6)
    assert by_unused is None or float(by_unused) == 0.0


def test_a_backward_pass_may_be_scaled_and_may_tell_of_gradients_before_it_ends():
    first, second = (keras.Variable(np.array([2.0, 3.0], "float32")) for _ in range(2))
    told = {}

    def compute():
        return ops.sum(first * second) + ops.sum(first), None

    _, backward = current().differentiate(compute, [first, second], [])
    gradients = backward(ops.convert_to_tensor(0.5), told.__setitem__)
    np.testing.assert_allclose(ops.convert_to_numpy(gradients[0]), [1.5, 2.0])
    np.testing.assert_allclose(ops.convert_to_numpy(gradients[1]), [1.0, 1.5])
    for index, gradient in told.items():
        np.testing.assert_array_equal(
            ops.convert_to_numpy(gradient), ops.convert_to_numpy(gradients[index])
        )
    assert len(told) == (2 if keras.backend.backend() == "torch" else 0)


def test_a_scalar_that_depends_on_nothing_has_no_gradients():
    variable = keras.Variable(np.ones(2, "float32"))
    _, backward = current().differentiate(lambda: (ops.ones(()), None), [variable], [])
    assert backward(2.0) == [None]
