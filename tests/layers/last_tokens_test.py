import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.last_tokens import shape_of_last, start_of_last, take_last

TENSOR = np.arange(12).reshape(2, 3, 2)


@pytest.mark.parametrize(("number", "first"), [(None, 0), (1, 2), (3, 0), (5, 0)])
def test_the_last_tokens_begin_where_the_others_end(number, first):
    tensor = keras.ops.convert_to_tensor(TENSOR)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(take_last(tensor, number)), TENSOR[:, first:]
    )
    assert int(start_of_last(tensor, 7, number)) == 7 + first
    assert shape_of_last((None, 3, 2), number) == (None, 3 - first, 2)


def test_what_is_said_once_for_all_tokens_stays():
    assert take_last(None, 2) is None
    assert take_last(TENSOR[:, :1], 2).shape == (2, 1, 2)
    assert shape_of_last((None, None, 2), 2) == (None, None, 2)


def test_no_number_of_tokens_is_refused():
    for function in (lambda: take_last(TENSOR, 0), lambda: shape_of_last((2, 3), 0)):
        with pytest.raises(InvalidInputError, match="`num_outputs` must be a positive integer"):
            function()
