import numpy as np
from keras import ops

from keras_deepseek.backend.gradient_scale import multiply_gradients

ARRAYS = [np.array([[3.0, 0.0]], "float32"), np.array(4.0, "float32")]


def test_what_there_is_is_multiplied():
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
