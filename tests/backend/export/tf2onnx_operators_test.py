"""What stands in ONNX for TensorFlow's operators computes the same as they do."""

import keras
import numpy as np
import pytest
from keras import ops

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="these are operators of TensorFlow's"
)


@pytest.mark.parametrize(
    "function",
    [
        ops.erf,
        lambda x: ops.gelu(x, approximate=False),
        ops.celu,
        ops.expm1,
        lambda x: ops.log1p(ops.abs(x)),
        # What is not chosen is infinite, or no number.
        lambda x: ops.where(x > 0, ops.log(ops.maximum(x, 0.0)), 0.0),
        lambda x: ops.where(x > 0, ops.sqrt(x), x),
    ],
)
def test_functions_of_one_tensor(function, run_both):
    x = np.linspace(-4, 4, 24, dtype="float32").reshape(3, 8)
    expected, received, _ = run_both(function, x)
    np.testing.assert_allclose(received, expected, atol=1e-6)


@pytest.mark.parametrize("function", [ops.signbit, ops.argmax, lambda x: ops.argmax(x, axis=-1)])
def test_the_sign_bit_of_floats(function, run_both):
    """Negative zero has one, and is less than zero to Keras's `argmax`."""
    x = np.array([[-0.0, 0.0, -1.0, -0.0], [-2.0, -3.0, -np.inf, -2.5], [1, 1e-45, np.inf, 0]])
    expected, received, operators = run_both(function, x.astype("float32"))
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)
    assert "Bitcast" not in operators


def test_the_bits_of_integers(run_both):
    x = np.arange(-8, 8, dtype="int32").reshape(2, 8)
    expected, received, _ = run_both(lambda x: ops.bitwise_and(x, 6), x)
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_signs(dtype, run_both):
    x = np.array([[-7, -1, 0], [1, 2**30 + 1, 5]], dtype)
    if dtype.startswith("float"):
        x[1, 2], x[0, 0] = np.nan, -np.inf
    expected, received, _ = run_both(ops.sign, x)
    assert received.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(received, np.sign(x))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_sum_by_segments(dtype, width, run_both):
    """A number below zero is of no segment."""
    data = (np.arange(1, 8 * width + 1) * 3).reshape(8, width).astype(dtype)
    segments = np.array([[2], [0], [2], [5], [1], [0], [-1], [5]], "int32")

    def sums(data, segments):
        numbers = ops.reshape(data, (-1,)) if width == 1 else data
        return ops.segment_sum(numbers, ops.reshape(segments, (-1,)), num_segments=6)

    expected, received, operators = run_both(sums, data, segments)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)
    assert ("Unique" in operators) == (width > 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [ops.expm1, ops.log1p])
def test_small_numbers_are_kept(function, dtype, run_both):
    x = np.array([[1e-30, 1e-8, -1e-6, 0.3, -0.4999, 0.5], [-0.9, 2, 40, 1e7, 3e38, 0]], dtype)
    x = np.minimum(x, 80) if function is ops.expm1 else x
    _, received, _ = run_both(function, x)
    assert received.dtype == dtype
    nearness = 2e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(received, getattr(np, function.__name__)(x), rtol=nearness)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_class_below_zero_is_none(dtype, run_both):
    classes = np.array([[0, -1, 7], [8, -8, 3]], dtype)
    expected, received, _ = run_both(lambda x: ops.one_hot(x, 8), classes)
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_places_in_what_is_sorted(side, dtype, run_both):
    values = np.array([[-1, 0, 1, 4], [5, 2, 7, 9]], dtype)
    ordered = np.array([0, 1, 1, 4, 7], dtype)
    if dtype == "float32":
        values[0, 0] = np.nan
    expected, received, _ = run_both(
        lambda x: ops.searchsorted(ordered, ops.reshape(x, (-1,)), side=side),
        values,
    )
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
@pytest.mark.parametrize("start", [0, 2, 5, 9, -3])
def test_an_update_stands_where_it_fits(dtype, start, run_both):
    """One that begins too far out is moved inwards, as TensorFlow moves it."""
    generator = np.random.default_rng(0)
    whole = (generator.normal(size=(3, 6, 2)) * 5).astype(dtype)
    part = (generator.normal(size=(3, 2, 2)) * 5).astype(dtype)
    index = np.full((3,), start, "int32")

    def update(whole, part, index):
        return ops.slice_update(whole, (0, index[0], 0), part)

    expected, received, _ = run_both(update, whole, part, index)
    assert received.dtype == expected.dtype
    np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_a_transposed_convolution_is_cut_at_the_end(kernel_size, padding, run_both):
    """Behind a product, whose sizes tf2onnx does not know."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 4, 3, 5)).astype("float32")
    product = generator.normal(size=(5, 2)).astype("float32")
    kernel = generator.normal(size=(kernel_size, kernel_size, 6, 2)).astype("float32")
    expected, received, operators = run_both(
        lambda x: ops.conv_transpose(ops.tensordot(x, product, 1), kernel, 2, padding), x
    )
    assert "ConvTranspose" in operators
    np.testing.assert_allclose(received, expected, atol=1e-5)
