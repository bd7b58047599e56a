import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.training.parameter_server.messages import SparseRows, pack_rows, unpack_rows


@given(st.sets(st.integers(0, 299), max_size=20), st.sampled_from([(), (3,), (2, 2)]))
def test_the_rows_that_were_touched_are_sent_alone(touched, shape):
    gradient = np.zeros((300, *(shape or (1,))), "float32")
    for row in touched:
        gradient[row] = row + 1.5
    packed = pack_rows(gradient)
    assert isinstance(packed, SparseRows)
    assert sorted(packed.indices) == sorted(touched)
    assert packed.rows.size == len(touched) * gradient[0].size
    np.testing.assert_array_equal(unpack_rows(packed), gradient)


@pytest.mark.parametrize(
    "gradient",
    [
        np.zeros((300,), "float32"),
        np.zeros((10, 4), "float32"),
        np.ones((300, 4), "float32"),
        np.float32(1.0).reshape(()),
    ],
)
def test_what_would_not_be_smaller_is_sent_as_it_is(gradient):
    assert pack_rows(gradient) is gradient
    assert unpack_rows(gradient) is gradient


def test_a_row_that_is_not_finite_is_sent_too():
    gradient = np.zeros((300, 2), "float32")
    gradient[7, 1] = np.nan
    np.testing.assert_array_equal(unpack_rows(pack_rows(gradient)), gradient)
