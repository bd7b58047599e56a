import keras
import numpy as np
import pytest

from keras_deepseek.layers.input_check import bound_indices


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_what_is_no_index_is_told_and_becomes_the_first(dtype):
    values = keras.ops.convert_to_tensor(np.array([[-1, 0], [4, 5], [-100, 100]], dtype))
    for count in (5, keras.ops.convert_to_tensor(5, "int32")):
        indices, exists = bound_indices(values, count)
        assert keras.backend.standardize_dtype(indices.dtype) == "int32"
        expected = [[0, 0], [4, 0], [0, 0]]
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(indices), expected)
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(exists), [[False, True], [True, False], [False, False]]
        )


@pytest.mark.parametrize("count", [256, 1000])
def test_bytes_index_more_rows_than_they_can_count(count):
    values = keras.ops.convert_to_tensor(np.array([0, 255], "uint8"))
    indices, exists = bound_indices(values, count)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(indices), [0, 255])
    assert keras.ops.convert_to_numpy(exists).all()
