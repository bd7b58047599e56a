import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import gather_masked_positions


@given(num_rows=st.integers(0, 4), length=st.integers(1, 9), more=st.integers(0, 3), data=st.data())
def test_each_masked_token_is_found_at_its_place(num_rows, length, more, data):
    cells = data.draw(st.lists(st.integers(-2, 3), min_size=9 * 4, max_size=9 * 4))
    targets = np.array(cells).reshape(4, 9)[:num_rows, :length]
    most = int((targets != -2).sum(axis=1).max(initial=0))
    count = most + more or 1
    positions, chosen = gather_masked_positions(targets, count, ignore_class=-2)
    assert positions.shape == chosen.shape == (num_rows, count)
    assert positions.dtype == chosen.dtype == np.int32
    for row, row_positions, row_tokens in zip(targets, positions, chosen, strict=True):
        expected = [(position, token) for position, token in enumerate(row) if token != -2]
        filled = expected + [(-1, -2)] * (count - len(expected))
        assert list(zip(row_positions, row_tokens, strict=True)) == filled


def test_without_a_number_the_fullest_row_says_it():
    positions, chosen = gather_masked_positions([[-100, 7], [8, 9]])
    assert positions.tolist() == [[1, -1], [0, 1]]
    assert chosen.tolist() == [[7, -100], [8, 9]]
    assert gather_masked_positions([[-100, -100]])[0].shape == (1, 0)


@pytest.mark.parametrize(
    ("targets", "count", "match"),
    [
        ([1, 2], None, r"shape \(num_rows, length\); received int64 of shape \(2,\)"),
        ([[1.0]], None, "must be integers of shape .* received float64"),
        ([[1, -100], [1, 2]], 1, "Row 1, counted from 0, has 2 masked tokens; received masks_per"),
        ([[1, 2]], 0, "`masks_per_sequence` must be"),
    ],
)
def test_bad_input_is_refused(targets, count, match):
    with pytest.raises(InvalidInputError, match=match):
        gather_masked_positions(targets, count)
