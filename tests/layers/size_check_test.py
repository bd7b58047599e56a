import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.layers.size_check import check_size, read_dim


def test_a_positive_integer_is_returned():
    assert check_size("num_heads", 3) == 3
    assert check_size("num_heads", None, default=2) == 2


def test_zero_is_no_default():
    with pytest.raises(InvalidInputError, match="`num_heads` must be a positive integer"):
        check_size("num_heads", 0, default=2)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
def test_anything_else_is_refused_by_the_arguments_name(value):
    with pytest.raises(InvalidInputError, match="`num_heads` must be a positive integer, received"):
        check_size("num_heads", value)


def test_the_dim_of_a_sequence_is_held_to():
    layer = keras.Layer(name="projecting")
    assert read_dim(layer, (None, None, 6)) == 6
    assert layer.input_spec.axes == {-1: 6}
    for shape in ((2, 6), (2, 3, 4, 6), (2, 3, None)):
        with pytest.raises(InvalidInputError, match="'projecting' needs inputs of shape"):
            read_dim(layer, shape)
