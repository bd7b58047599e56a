import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.layers.token_dim import read_dim


def test_the_dim_of_a_sequence_is_held_to():
    layer = keras.Layer(name="projecting")
    assert read_dim(layer, (None, None, 6)) == 6
    assert layer.input_spec.axes == {-1: 6}
    for shape in ((2, 6), (2, 3, 4, 6), (2, 3, None)):
        with pytest.raises(InvalidInputError, match="'projecting' needs inputs of shape"):
            read_dim(layer, shape)
