import keras
import numpy as np
from keras import ops

from keras_deepseek.backend import tensor_values
from keras_deepseek.backend.tensor_values import (
    count_bytes,
    fits_one_file,
    multiply_gradients,
    read_values,
)


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


ARRAYS = [np.array([[3.0, 0.0]], "float32"), np.array(4.0, "float32")]


def test_existing_gradients_are_multiplied():
    gradients = [ops.convert_to_tensor(ARRAYS[0]), None]
    multiplied, none = multiply_gradients(gradients, ops.convert_to_tensor(0.5))
    np.testing.assert_array_equal(ops.convert_to_numpy(multiplied), [[1.5, 0.0]])
    assert none is None


def test_without_a_factor_nothing_changes():
    gradients = [ops.convert_to_tensor(array) for array in ARRAYS]
    assert all(
        scaled is gradient
        for scaled, gradient in zip(multiply_gradients(gradients, None), gradients, strict=True)
    )


def test_the_weights_of_a_model_are_counted(monkeypatch):
    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(25, dtype="float16")])
    assert fits_one_file(model)
    monkeypatch.setattr(tensor_values, "LARGEST_FILE", 50_050)
    assert fits_one_file(model)
    monkeypatch.setattr(tensor_values, "LARGEST_FILE", 50_049)
    assert not fits_one_file(model)
