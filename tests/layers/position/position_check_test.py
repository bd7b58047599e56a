import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.position.rotary_embedding import (
    check_no_theta,
    check_positions,
)
from keras_deepseek.layers.position.start_index import check_length, check_start


@pytest.mark.parametrize(
    ("max_length", "length", "start"),
    [
        (None, 9, 9),
        (4, None, 9),
        (4, 4, 0),
        (4, 1, 3),
        (4, 2, np.array([2, 0])),
    ],
)
def test_a_call_within_the_positions_passes(max_length, length, start):
    check_length("layer", max_length, length, start)


@pytest.mark.parametrize(("length", "start"), [(5, 0), (1, 4)])
def test_a_call_beyond_the_positions_is_refused(length, start):
    message = f"'layer' has a `max_length` of 4 .* {length} tokens from position {start}\\."
    with pytest.raises(InvalidInputError, match=message):
        check_length("layer", 4, length, start)


@pytest.mark.parametrize("shape", [(2, 3), (1, 3)])
def test_positions_of_each_sequence_or_of_all_pass(shape):
    check_positions(np.zeros(shape, "int32"), np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 4), "int32"), ((3,), "int32"), ((2, 3), "float32")]
)
def test_other_positions_are_refused(shape, dtype):
    with pytest.raises(InvalidInputError, match=rf"for these inputs \(2, 3\), received {dtype}"):
        check_positions(np.zeros(shape, dtype), np.zeros((2, 3, 4)))


@pytest.mark.parametrize("start_index", [0, 3, np.int64(2), np.array(2), np.array([0, 2])])
def test_a_start_is_an_integer_for_all_or_each(start_index):
    check_start(start_index, 2)
    check_start(keras.ops.convert_to_tensor(start_index), 2)


@pytest.mark.parametrize(
    "start_index",
    [
        1.5,
        -3,
        np.int64(-3),
        True,
        "1",
        None,
        np.nan,
        np.array([1, 2, 3]),
        np.array([[1, 2]]),
        np.array([1, -2]),
        np.array([1.0, 2.0]),
    ],
)
def test_what_is_no_start_is_refused(start_index):
    with pytest.raises(InvalidInputError, match="`start_index` must be an integer of at least 0"):
        check_start(start_index, 2)


def test_the_name_that_checkpoints_give_the_base_has_a_hint():
    check_no_theta({"name": "layer"}, "max_wavelength")
    with pytest.raises(InvalidInputError, match="is `max_wavelength` here: pass max_wavelength=2"):
        check_no_theta({"rope_theta": 2}, "max_wavelength")
