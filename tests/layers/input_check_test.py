import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.input_check import (
    check_floating,
    check_integer_tensor,
    check_tensor,
    check_tokens,
    is_shape,
)


def test_shapes_are_compared_as_far_as_they_are_known():
    assert is_shape((2, None, 3), (None, 4, 3))
    assert not is_shape((2, 3), (2, 4))
    assert not is_shape((2, 3), (2, 3, 4))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_floating_point_tensors_pass(dtype):
    check_floating(keras.ops.ones((2, 3), dtype), "layer")
    check_floating(keras.Input((3,), dtype=dtype), "layer")


def test_what_keras_makes_a_tensor_of_is_left_to_it():
    class Table:
        def __array__(self, dtype=None, copy=None):
            return np.ones((2, 3), dtype)

    check_floating(Table(), "layer")


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_other_numbers_are_refused_with_their_dtype(dtype):
    for inputs in (np.ones((2, 3), dtype), keras.ops.ones((2, 3), dtype)):
        with pytest.raises(InvalidInputError, match=rf"'layer' .* received {dtype} of .*\(2, 3\)"):
            check_floating(inputs, "layer")
    with pytest.raises(InvalidInputError, match=rf"received {dtype} of shape \(None, 3\). If they"):
        check_floating(keras.Input((3,), dtype=dtype), "layer")


@pytest.mark.parametrize(("inputs", "received"), [(None, "None"), ([1.0], "list"), ("a", "str")])
def test_what_is_no_tensor_is_refused(inputs, received):
    with pytest.raises(
        InvalidInputError, match=f"'layer' expects .* tensor .*, received {received}"
    ):
        check_floating(inputs, "layer")
    for check in (check_tensor, check_integer_tensor):
        with pytest.raises(InvalidInputError, match=f"`mask` must be a .*, received {received}"):
            check("mask", inputs)


def test_integers_alone_are_integers():
    check_integer_tensor("token_ids", np.ones((2, 3), "int64"))
    check_integer_tensor("token_ids", keras.Input((3,), dtype="int32"))
    with pytest.raises(InvalidInputError, match="`token_ids` must be integers, received float32"):
        check_integer_tensor("token_ids", np.ones((2, 3), "float32"))


def test_a_shape_that_does_not_fit_is_refused():
    inputs = keras.KerasTensor((None, 3, 4))
    check_tokens("mask", None, inputs)
    check_tokens("mask", keras.KerasTensor((2, None)), inputs)
    for shape in [(2, 4), (3,), (2, 3, 4)]:
        with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(None, 3\), received"):
            check_tokens("mask", keras.KerasTensor(shape), inputs)


def test_floats_are_refused_where_integers_are_needed():
    with pytest.raises(InvalidInputError, match=r"`targets` must be integers, received float32"):
        check_tokens("targets", np.ones((2, 3), "float32"), np.ones((2, 3, 4)), is_integer=True)
