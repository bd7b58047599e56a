import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.masks import check_attention_mask, check_mask, complete_mask


def test_a_mask_of_the_inputs_and_none_pass():
    inputs = np.ones((2, 3, 4))
    check_mask(None, inputs)
    check_mask(np.ones((2, 3), bool), inputs)
    check_mask(keras.Input((None,), dtype="bool"), keras.Input((3, 4)))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 3), (2,)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 3\), received"):
        check_mask(np.ones(shape, bool), np.ones((2, 3, 4)))


def test_a_mask_may_have_more_axes_or_one():
    check_mask(np.ones((2, 3, 4), bool), np.ones((2, 3, 4, 5)))
    check_mask(np.ones(2, bool), np.ones((2, 5)))


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_mask_of_numbers_is_refused(dtype):
    for mask in (np.ones((2, 3), dtype), keras.KerasTensor((2, 3), dtype)):
        with pytest.raises(InvalidInputError, match=f"`mask` must be boolean, .* received {dtype}"):
            check_mask(mask, np.ones((2, 3, 4)))


def test_a_list_is_no_mask():
    with pytest.raises(InvalidInputError, match="must be a tensor or a NumPy array, received list"):
        check_mask([[True]], np.ones((1, 1, 4)))
    with pytest.raises(InvalidInputError, match="must be a tensor or a NumPy array, received list"):
        check_attention_mask([[True]], np.ones((1, 1, 4)), np.ones((1, 1, 4)))


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 5), (2, 1, 5), (1, 1, 1)])
def test_an_attention_mask_that_broadcasts_passes(shape):
    queries, keys = np.ones((2, 3, 4)), np.ones((2, 5, 4))
    check_attention_mask(None, queries, keys)
    check_attention_mask(np.ones(shape, bool), queries, keys)
    check_attention_mask(keras.Input((None, 5), dtype="bool"), keras.Input((3, 4)), keys)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 5), "bool"), ((2, 3, 4), "bool"), ((3, 3, 5), "bool"), ((2, 3, 5), "float32")],
)
def test_another_attention_mask_is_refused(shape, dtype):
    with pytest.raises(InvalidInputError, match=r"`attention_mask` must .* \(2, 3, 5\), received"):
        check_attention_mask(np.ones(shape, dtype), np.ones((2, 3, 4)), np.ones((2, 5, 4)))


def test_no_mask_is_one_that_shows_all():
    mask = np.array([[True, False, True]])
    assert complete_mask(mask, np.ones((1, 3, 4))) is mask
    ones = keras.ops.convert_to_numpy(complete_mask(None, np.ones((1, 3, 4))))
    assert ones.tolist() == [[True] * 3]
