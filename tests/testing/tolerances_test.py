import numpy as np
import pytest

from keras_deepseek.testing import TOLERANCES, assert_close


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_an_error_just_within_the_table_passes_and_one_beyond_fails(dtype):
    expected = np.array([4.0, 0.0])
    error = np.array([0.0, 4.0 * TOLERANCES[dtype]])
    assert_close(expected + 0.9 * error, expected, dtype)
    with pytest.raises(AssertionError, match=r"The result: relative error .* at \(1,\)"):
        assert_close(expected + 1.1 * error, expected, dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails(bad):
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
