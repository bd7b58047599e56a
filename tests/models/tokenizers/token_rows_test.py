import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.tokenizers.token_rows import read_rows, read_token_id


def test_rows_are_lists_arrays_or_tensors_of_integers():
    rows = read_rows([[1, 2], (), np.array([3], "uint16"), ops.convert_to_tensor([-100])])
    assert [row.tolist() for row in rows] == [[1, 2], [], [3], [-100]]
    assert [row.tolist() for row in read_rows(np.array([[1], [2]]))] == [[1], [2]]


@pytest.mark.parametrize("row", [3, "ab", [1.0], [True], [2**31], [10**30], [[1], [2, 3]], [None]])
def test_what_is_no_row_is_told(row):
    with pytest.raises(InvalidInputError, match="A row must be a list of token ids, integers of"):
        read_rows([[1], row])


@pytest.mark.parametrize("rows", [None, 3, "ab", {"a": 1}])
def test_what_are_no_rows_is_told(rows):
    with pytest.raises(InvalidInputError, match="Rows must be lists of token ids, received"):
        read_rows(rows)


def test_a_token_id_is_an_integer_of_any_library():
    for token_id in (3, np.int32(3), np.array(3), ops.convert_to_tensor(3)):
        assert read_token_id(token_id) == 3
        assert type(read_token_id(token_id)) is int


@pytest.mark.parametrize("token_id", [-1, 2**32, 1.0, np.float32(1), "a", None, True, np.bool_(1)])
def test_what_is_no_token_id_is_told(token_id):
    with pytest.raises(InvalidInputError, match="A token id must be an integer of at least 0"):
        read_token_id(token_id)
