import numpy as np
from keras import ops

from keras_deepseek.backend.gradient_scale import convert_gradients, multiply_gradients, norm_of_all

ARRAYS = [np.array([[3.0, 0.0]], "float32"), np.array(4.0, "float32")]


def test_the_norm_is_that_of_all_together():
    norm = norm_of_all([ops.convert_to_tensor(array) for array in ARRAYS])
    assert float(ops.convert_to_numpy(norm)) == 5.0


def test_what_there_is_is_multiplied():
    gradients = [ops.convert_to_tensor(ARRAYS[0]), None]
    multiplied, none = multiply_gradients(gradients, ops.convert_to_tensor(0.5))
    np.testing.assert_array_equal(ops.convert_to_numpy(multiplied), [[1.5, 0.0]])
    assert none is None


def test_without_a_factor_nothing_changes():
    gradients = [ops.convert_to_tensor(array) for array in ARRAYS]
    assert all(
        one is other
        for one, other in zip(multiply_gradients(gradients, None), gradients, strict=True)
    )


def test_arrays_become_tensors_and_what_there_is_not_stays_so():
    tensor, none = convert_gradients([ARRAYS[0], None])
    assert none is None
    np.testing.assert_array_equal(ops.convert_to_numpy(tensor), ARRAYS[0])
