import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.residual.stream_weights import (
    check_streams,
    normalize_doubly,
    project_streams,
    sum_streams,
)
from keras_deepseek.testing import assert_close

RNG = np.random.default_rng(0)
STREAMS = RNG.normal(size=(2, 3, 4, 5)).astype("float32")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_streams_are_normed_as_one_vector_and_projected():
    kernel = RNG.normal(size=(20, 6)).astype("float32")
    flat = STREAMS.reshape(2, 3, 20).astype("float64")
    expected = flat / np.sqrt((flat**2).mean(-1, keepdims=True) + 0.5) @ kernel
    projected = project_streams(STREAMS, keras.ops.convert_to_tensor(kernel), 0.5)
    assert_close(to_numpy(projected), expected)


def test_twenty_rounds_make_rows_and_columns_sum_to_one():
    scores = RNG.normal(size=(3, 4, 4)).astype("float32")
    matrices = to_numpy(normalize_doubly(keras.ops.softmax(scores), 20, 1e-6))
    assert_close(matrices.sum(-1), np.ones((3, 4)), 1e-4)
    assert_close(matrices.sum(-2), np.ones((3, 4)), 1e-4)


def test_one_round_takes_the_columns_alone():
    matrix = np.array([[0.25, 0.75], [0.5, 0.5]], "float32")
    result = to_numpy(normalize_doubly(keras.ops.convert_to_tensor(matrix), 1, 0.0))
    assert_close(result, matrix / matrix.sum(0))


def test_the_sum_keeps_the_dtype_of_the_streams():
    weights = RNG.normal(size=(2, 3, 4)).astype("float32")
    expected = (STREAMS * weights[..., None]).sum(-2)
    assert_close(to_numpy(sum_streams(STREAMS, weights)), expected)
    halves = sum_streams(keras.ops.cast(STREAMS, "bfloat16"), weights)
    assert keras.backend.standardize_dtype(halves.dtype) == "bfloat16"


@pytest.mark.parametrize("shape", [(2,), (4, 5), (2, 1, 5), (2, None, 5), (2, 4, None)])
def test_inputs_that_are_no_streams_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"'it' needs inputs of shape .* 2 or more streams"):
        check_streams("it", shape)
    assert check_streams("it", (None, None, 4, 5)) == (4, 5)
