"""Linear algebra, written as ONNX, computes what Keras computes."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 4, 5)).astype("float32")
X[0, 1, 2], X[1, 0, 0] = 0, -0.0
SQUARE = RANDOM.normal(size=(3, 4, 4)).astype("float32")
INTEGERS = RANDOM.integers(-9, 9, (3, 4, 5)).astype("int32")
SPECIAL = np.array([[[1, math.nan], [3, 4]], [[math.inf, 1], [1, -math.inf]]] * 2, "float32")


BEYOND = keras.backend.backend() != "tensorflow"  # Which raises an error there.


@pytest.mark.parametrize("k", [-9, -2, 0, 1, 9] if BEYOND else [-2, 0, 1])
@pytest.mark.parametrize("function", [ops.tril, ops.triu])
def test_a_triangle_begins_at_any_diagonal(function, k):
    check_operation(lambda x: function(x, k), X)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "float16"])
def test_a_triangle_has_any_dtype(dtype):
    check_operation(ops.tril, (10 * X).astype(dtype))


def test_a_triangle_has_nothing_of_what_it_hides():
    check_operation(ops.tril, SPECIAL)


@pytest.mark.parametrize("axes", [(1, 2), (-1, 1), (2, 0)], ids=str)
@pytest.mark.parametrize("offset", [-5, -1, 0, 2, 9] if BEYOND else [-1, 0, 2])
def test_a_diagonal_lies_in_any_two_axes(axes, offset):
    if 0 in axes and abs(offset) > 1:
        pytest.skip("Keras infers a length that a batch of one does not have")
    check_operation(lambda x: ops.diagonal(x, offset, *axes), X)


@pytest.mark.parametrize(
    "array", [X, INTEGERS, X > 0, (9 * X).astype("int8")], ids=lambda array: str(array.dtype)
)
def test_a_trace_sums_a_diagonal(array):
    check_operation(lambda x: ops.trace(x, 1, 1, 2), array)


def test_a_diagonal_of_a_free_size():
    def function(x):
        return ops.diagonal(x, 1, 1, 2), ops.diagonal(x, -1, 1, 2), ops.tril(x)

    check_operation(function, SQUARE, free_axes=[1, 2])


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_a_matrix_has_a_vector_as_its_diagonal(k):
    def function(x):
        return ops.diag(x, k), ops.diagflat(x > 3, k)

    check_operation(function, np.arange(5, dtype="float32"))


def test_determinants():
    check_operation(ops.det, np.concatenate([SQUARE, 0 * SQUARE]), tolerance=1e-4)


NORMS = {
    "of an axis": {"axis": (-1,)},
    "of an axis that is kept": {"axis": (1,), "keepdims": True},
    "of two axes": {"axis": (1, 2)},
    "of two axes by name": {"axis": (-1, 1), "ord": "fro"},
    "1": {"axis": (2,), "ord": 1},
    "2": {"axis": (2,), "ord": 2},
    "3": {"axis": (2,), "ord": 3},
    "one half": {"axis": (2,), "ord": 0.5},
    "minus one": {"axis": (1,), "ord": -1},
    "0": {"axis": (2,), "ord": 0},
    "infinity": {"axis": (2,), "ord": math.inf},
    "minus infinity": {"axis": (2,), "ord": -math.inf},
    "1 of matrices": {"axis": (1, 2), "ord": 1},
    "1 of transposed matrices": {"axis": (2, 1), "ord": 1},
    "minus one of matrices": {"axis": (1, 2), "ord": -1},
    "infinity of matrices": {"axis": (1, 2), "ord": math.inf},
    "minus infinity of matrices": {"axis": (-1, -2), "ord": -math.inf, "keepdims": True},
}


@pytest.mark.parametrize("case", NORMS)
def test_a_norm_is_that_of_keras(case):
    check_operation(lambda x: ops.norm(x, **NORMS[case]), X)


@pytest.mark.parametrize("order", [None, 1, 0, math.inf, 3])
def test_a_norm_of_nan_and_infinity(order):
    check_operation(lambda x: ops.norm(x, order, axis=(2,)), SPECIAL)


@pytest.mark.parametrize(
    "array", [INTEGERS, (9 * X).astype("float16"), X > 0], ids=lambda array: str(array.dtype)
)
def test_a_norm_is_a_float(array):
    check_operation(lambda x: ops.norm(x, axis=(-1,)), array, tolerance=1e-3)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it has two axes at most")
def test_a_norm_of_all_axes():
    check_operation(lambda x: ops.expand_dims(ops.norm(x), 0), X)


@pytest.mark.parametrize("order", ["nuc", 2, -2])
def test_a_norm_of_singular_values_is_refused(order):
    with pytest.raises(NoEntryError, match="singular values"):
        check_operation(lambda x: ops.norm(x, order, axis=(1, 2)), X)


@pytest.mark.parametrize(
    "function", [ops.inv, ops.cholesky, ops.svd], ids=["inv", "cholesky", "svd"]
)
def test_what_onnx_lacks_is_refused(function):
    with pytest.raises(NoEntryError):
        check_operation(function, SQUARE)
