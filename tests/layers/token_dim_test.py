import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.layers.token_dim import check_shape, read_dim


def test_the_dim_of_a_sequence_is_held_to():
    layer = keras.Layer(name="projecting")
    assert read_dim(layer, (None, None, 6)) == 6
    assert layer.input_spec.axes == {-1: 6}
    for shape in ((2, 6), (2, 3, 4, 6), (2, 3, None)):
        with pytest.raises(InvalidInputError, match="'projecting' needs inputs of shape"):
            read_dim(layer, shape)


def test_nothing_has_no_shape_of_a_sequence():
    assert check_shape("projecting", (None, None, 6)) == 6
    with pytest.raises(InvalidInputError, match=r"'projecting' needs .* received None"):
        check_shape("projecting", None)
