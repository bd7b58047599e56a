import keras
import numpy as np

from keras_deepseek.backend.host_values import count_bytes, read_values


def test_values_are_copies():
    variable = keras.Variable(np.ones((2, 3), "float32"))
    (values,) = read_values([variable])
    variable.assign(np.zeros((2, 3)))
    np.testing.assert_array_equal(values, np.ones((2, 3)))


def test_bytes_are_counted_by_dtype():
    dtypes = {"float32": 24, "bfloat16": 12, "float16": 12, "int32": 24, "bool": 6}
    for dtype, expected in dtypes.items():
        variable = keras.Variable(np.zeros((2, 3)), dtype=dtype, trainable=False)
        assert count_bytes([variable]) == expected
    assert count_bytes([keras.Variable(1.0), keras.Variable(2.0)]) == 8
    assert count_bytes([]) == 0
