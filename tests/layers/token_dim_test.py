import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import check_shape, read_dim, read_last_dim


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


def test_vectors_may_have_any_number_of_axes_before_them():
    layer = keras.Layer(name="projecting")
    for shape in ((None, 6), (2, 3, 4, 6)):
        assert read_last_dim(layer, shape) == 6
    assert (layer.input_spec.min_ndim, layer.input_spec.axes) == (2, {-1: 6})
    for shape in ((6,), (2, None)):
        with pytest.raises(InvalidInputError, match=r"'projecting' .* \(batch_size, ..., dim\) .*"):
            read_last_dim(layer, shape)
    with pytest.raises(InvalidInputError, match=r"shape \(rows, dim\) .* received \(2, 6\)"):
        read_last_dim(layer, (2, 6), min_rank=3, axes="(rows, dim)")
