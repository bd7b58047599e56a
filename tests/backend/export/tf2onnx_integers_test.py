"""Integers come out of ONNX with all of their digits, where TensorFlow wrote it."""

import keras
import numpy as np
import pytest
from keras import ops

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="these are operators of TensorFlow's"
)

DTYPES = ["int8", "uint8", "int32", "int64", "float64"]


def near(dtype):
    """Numbers that are the same in a type of half of their digits."""
    if dtype == "float64":
        return 1 + np.array([[3, -1, 2, -4], [0, 1, -2, 2]]) * 2.0**-50
    largest = np.iinfo(dtype).max
    numbers = largest - np.array([[1, 6, 3, 3], [5, 0, 7, 2]])
    signs = [[1, 1, 1, 1], [-1, 1, -1, 1]] if np.iinfo(dtype).min else 1
    return (numbers * np.array(signs)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_order(dtype, run_both):
    x = near(dtype)
    expected, received, _ = run_both(lambda x: ops.sort(x, axis=-1), x)
    assert received.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(received, np.sort(x, axis=-1))


@pytest.mark.parametrize("dtype", [*DTYPES, "float32"])
def test_the_largest_and_their_places(dtype, run_both):
    x = near("float64" if dtype == "float32" else dtype).astype(dtype)
    expected, received, _ = run_both(lambda x: ops.top_k(x, 3), x)
    for a, b in zip(received, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(received[0], -np.sort(-x.astype("O"), axis=-1)[:, :3])


@pytest.mark.parametrize("function", [ops.less, ops.greater, ops.less_equal, ops.greater_equal])
@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons(function, dtype, run_both):
    x = near(dtype)
    y = x[:, [1, 0, 3, 2]]
    _, received, _ = run_both(function, x, y)
    np.testing.assert_array_equal(received, getattr(np, function.__name__)(x, y))


@pytest.mark.parametrize("function", [ops.argmax, ops.argmin])
@pytest.mark.parametrize("dtype", ["bool", "int16", "int32", "float32"])
def test_the_place_of_an_extreme(function, dtype, run_both):
    x = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype)
    expected, received, _ = run_both(lambda x: function(x, axis=-1), x)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, getattr(np, function.__name__)(x, axis=-1))


@pytest.mark.parametrize("function", [ops.floor_divide, ops.mod])
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32"])
def test_rounding_is_downwards(function, dtype, run_both):
    """tf2onnx rounds integers towards zero."""
    x = np.array([[-7, -6, -1, 0], [1, 6, 7, -127]], dtype)
    y = np.array([[3, -3, 127, 5], [-127, 6, -4, 127]], dtype)
    expected, received, _ = run_both(function, x, y)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)
    np.testing.assert_array_equal(received, getattr(np, function.__name__)(x, y))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_rounding_is_downwards_up_to_the_bounds_of_the_type(dtype, run_both):
    least, largest = np.iinfo(dtype).min, np.iinfo(dtype).max
    x = np.array([[least, least, largest, 79], [least + 1, largest, -128, -1]], dtype)
    y = np.array([[3, largest, -3, -69], [-2, least, 3, largest]], dtype)
    expected, received, _ = run_both(ops.floor_divide, x, y)
    np.testing.assert_array_equal(received, x // y)
    np.testing.assert_array_equal(expected, x // y)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_bits_are_moved(dtype, run_both):
    """To the right, the sign stays."""
    x = np.array([[100, 77, 3, 1], [5, 0, 7, 127]]).astype(dtype)
    x[1] = (0 - x[1]).astype(dtype)
    counts = np.array([[1, 0, 7, 2], [1, 3, 2, 6]], dtype)
    for function in (ops.left_shift, ops.right_shift):
        expected, received, _ = run_both(function, x, counts)
        assert received.dtype == dtype
        np.testing.assert_array_equal(received, expected)
        np.testing.assert_array_equal(received, getattr(np, function.__name__)(x, counts))


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("width", [1, 2])
def test_an_extreme_by_segments(dtype, width, run_both):
    """A number below zero is of no segment; a segment that has none has the least number."""
    x = np.repeat(near("float64" if dtype == "float32" else dtype).reshape(8, 1), width, 1)
    segments = np.array([[2], [0], [2], [4], [1], [0], [-1], [4]], "int32")

    def extremes(x, segments):
        rows = ops.reshape(x, (-1,)) if width == 1 else x
        return ops.segment_max(rows, ops.reshape(segments, (-1,)), num_segments=5)

    expected, received, _ = run_both(extremes, x.astype(dtype), segments)
    assert received.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(received, expected)
    least = np.finfo(dtype).min if dtype.startswith("float") else np.iinfo(dtype).min
    np.testing.assert_array_equal(received[3], least)


NARROW = ["int8", "uint8", "int16", "uint16", "uint32"]
REDUCTIONS = {
    "sum": lambda x: ops.sum(x, axis=-1),
    "all": lambda x: ops.sum(x, axis=(1, 2), keepdims=True),
    "product": lambda x: ops.prod(x, axis=1),
    "largest": lambda x: ops.max(x, axis=-1),
    "smallest": lambda x: ops.min(x, axis=1),
    "sums": lambda x: ops.cumsum(x, axis=-1),
    "relu": ops.relu,
}


@pytest.mark.parametrize("dtype", [*NARROW, "int32", "int64", "float32"])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_integers(name, dtype, run_both):
    """onnxruntime has no sum of what is narrower than int32, nor of what has no sign."""
    if name == "relu" and dtype == "uint32":
        pytest.skip("TensorFlow has none on a CPU")
    x = (np.arange(24).reshape(2, 3, 4) * 5 - (0 if dtype.startswith("u") else 9)).astype(dtype)
    expected, received, _ = run_both(REDUCTIONS[name], x)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)


def test_which_are_true_is_counted(run_both):
    x = np.array([[True, False, True], [False] * 3])
    expected, received, _ = run_both(lambda x: ops.sum(x, axis=-1), x)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, [2, 0])


@pytest.mark.parametrize("name", ["sum", "sums"])
def test_a_sum_that_overflows_goes_on_from_below(name, run_both):
    x = np.array([[[2**31 - 1, 2**30, 7], [-(2**31), -5, 3]]], "int32")
    expected, received, _ = run_both(REDUCTIONS[name], x)
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
# Keras 3.13 has no `fmod`.
@pytest.mark.parametrize("function", [getattr(ops, name, ops.mod) for name in ("mod", "fmod")])
@pytest.mark.parametrize("divisor", [3.0, -3.0, 0.7])
def test_the_rest_of_what_is_large(function, divisor, dtype, run_both):
    x = np.array([[1e30, -1e30, 7.5, -7.5, 1e10, -1e10, 3e7, 0.0, 6.0, -6.0]], dtype)
    expected, received, _ = run_both(lambda x: function(x, ops.cast(divisor, dtype)), x)
    assert np.any(expected[:, 4:6] != 0)
    np.testing.assert_array_equal(received, expected)
