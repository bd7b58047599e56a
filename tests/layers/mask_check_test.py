import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.mask_check import check_mask


def test_a_mask_of_the_inputs_and_none_pass():
    inputs = np.ones((2, 3, 4))
    check_mask(None, inputs)
    check_mask(np.ones((2, 3), bool), inputs)
    check_mask(keras.Input((None,)), keras.Input((3, 4)))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 3), (2,)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(InvalidInputError, match=r"`mask` must be .* \(2, 3\), received"):
        check_mask(np.ones(shape, bool), np.ones((2, 3, 4)))
