import keras
import numpy as np
import pytest

from keras_deepseek.layers.double_precision import (
    accumulate,
    call_dense,
    multiply_matrices,
    multiply_transposed,
    promote_dtypes,
)
from keras_deepseek.testing import assert_close
from tests.oracles.precisions import PRECISIONS


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float64", "float32"), "float64"),
        (("float16", "float32"), "float32"),
        (("float32", "float64"), "float64"),
        (("bfloat16", "bfloat16"), "bfloat16"),
    ],
)
def test_the_widest_dtype_holds_all(dtypes, expected):
    assert promote_dtypes(*dtypes) == expected


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_sums_are_of_the_dtype_of_what_is_added_up(dtype):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    sums = keras.ops.convert_to_numpy(accumulate(keras.ops.convert_to_tensor(x), 1))
    assert sums.dtype == dtype
    assert_close(sums, np.cumsum(x, axis=1), dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_product_is_of_the_dtype_of_its_factors(dtype):
    rng = np.random.default_rng(0)
    first_factor, second_factor = (
        rng.normal(size=(2, 3, 4)).astype(dtype),
        rng.normal(size=(4, 5)).astype(dtype),
    )
    expected = first_factor @ second_factor
    variable = keras.Variable(second_factor, dtype=dtype)
    for factor in (keras.ops.convert_to_tensor(second_factor), variable):
        product = multiply_matrices(keras.ops.convert_to_tensor(first_factor), factor)
        assert keras.backend.standardize_dtype(product.dtype) == dtype
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(product),
            expected,
            rtol=1e-14 if dtype == "float64" else 1e-5,
        )


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_products_of_rows_with_rows_are_of_the_dtype_of_these(dtype):
    rng = np.random.default_rng(0)
    first_factor, second_factor = (
        rng.normal(size=shape).astype(dtype) for shape in [(2, 3, 4, 5), (2, 3, 6, 5)]
    )
    product = multiply_transposed(*map(keras.ops.convert_to_tensor, (first_factor, second_factor)))
    assert keras.backend.standardize_dtype(product.dtype) == dtype
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(product),
        first_factor @ np.swapaxes(second_factor, -1, -2),
        rtol=1e-12 if dtype == "float64" else 1e-4,
    )


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_dense_layer_is_called_in_the_dtype_of_its_inputs(dtype, use_bias):
    dense = keras.layers.Dense(
        5, "relu", use_bias=use_bias, bias_initializer="random_normal", dtype=dtype
    )
    dense.build((None, 4))
    inputs = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    expected = inputs @ keras.ops.convert_to_numpy(dense.kernel)
    if use_bias:
        expected = expected + keras.ops.convert_to_numpy(dense.bias)
    outputs = call_dense(dense, keras.ops.convert_to_tensor(inputs))
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    tolerance = 1e-14 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(outputs), np.maximum(expected, 0), atol=tolerance
    )
