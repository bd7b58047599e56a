import numpy as np
import pytest

from keras_deepseek.testing import TOLERANCES, assert_close
from keras_deepseek.testing.tolerances import assert_gradients

X = np.array([[0.3, -1.2], [0.8, 2.0]], "float32")
Y = np.array([1.5, -0.5], "float32")


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_an_error_just_within_the_table_passes_and_one_beyond_fails(dtype):
    expected = np.array([4.0, 0.0])
    error = np.array([0.0, 4.0 * TOLERANCES[dtype]])
    assert_close(expected + 0.9 * error, expected, dtype)
    with pytest.raises(AssertionError, match=r"The result: relative error .* at \(1,\)"):
        assert_close(expected + 1.1 * error, expected, dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail(bad):
    with pytest.raises(AssertionError, match="Output"):
        assert_close([1.0, bad], [1.0, 2.0], 0.5, "Output")


def test_another_shape_fails_even_if_it_would_broadcast():
    with pytest.raises(AssertionError, match=r"shape \(1, 2\), expected \(2,\)"):
        assert_close([[1.0, 2.0]], [1.0, 2.0])


def test_zeros_are_compared_absolutely():
    assert_close([0.0], [0.0])
    with pytest.raises(AssertionError):
        assert_close([1e-3], [0.0])


def test_empty_arrays_are_equal():
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)))


def terms(arrays):
    x, y = (array.astype("float64") for array in arrays)
    return (np.sin(x) @ y + y).ravel()


GRADIENTS = [np.cos(X) * Y, np.sin(X).sum(0) + 1]


def test_the_true_gradients_pass():
    assert_gradients(terms, [X, Y], GRADIENTS, ["x", "y"])


@pytest.mark.parametrize(("index", "name"), [(0, "x"), (1, "y")])
@pytest.mark.parametrize("change", [lambda g: 1.05 * g, lambda g: -g, np.zeros_like])
def test_a_wrong_gradient_fails_and_is_named(index, name, change):
    gradients = list(GRADIENTS)
    gradients[index] = change(gradients[index])
    with pytest.raises(AssertionError, match=f"Gradient by {name} against finite differences"):
        assert_gradients(terms, [X, Y], gradients, ["x", "y"])


def test_one_wrong_entry_fails():
    wrong = GRADIENTS[0].copy()
    wrong[1, 0] = 0
    with pytest.raises(AssertionError):
        assert_gradients(terms, [X, Y], [wrong, GRADIENTS[1]], ["x", "y"])


def test_a_gradient_of_zero_may_differ_by_rounding():
    def constant(arrays):
        noise = 1e-7 * np.random.default_rng(int(1e6 * arrays[0].sum()) % 1000).normal(size=3)
        return np.array([1.0, 2.0, 3.0]) + noise

    assert_gradients(constant, [np.abs(X)], [np.zeros_like(X)], ["x"])


def test_a_kink_within_the_step_does_not_fail_the_gradient_of_its_side():
    x = np.array([1e-4], "float32")
    for slope in (1.0, 0.0):  # Of max(x, 0), above its kink and below.
        sign = 1 if slope else -1
        assert_gradients(
            lambda arrays: np.maximum(arrays[0].astype("float64"), 0),
            [sign * x],
            [np.array([slope])],
            ["x"],
        )


def test_a_kink_excuses_no_gradient_beyond_both_sides():
    with pytest.raises(AssertionError):
        assert_gradients(
            lambda arrays: np.maximum(arrays[0].astype("float64"), 0),
            [np.array([1e-4], "float32")],
            [np.array([1.5])],
            ["x"],
        )
