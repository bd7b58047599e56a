import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.data.token_features import check_padding, read_features


def test_sequences_become_arrays():
    arrays, lengths = read_features({"a": [[1, 2], [3]], "b": [np.ones((2, 4)), np.ones((1, 4))]})
    assert lengths == [2, 1]
    assert arrays["a"][0].tolist() == [1, 2]
    assert arrays["b"][1].shape == (1, 4)


def test_an_empty_sequence_has_the_dtype_of_the_others():
    arrays, lengths = read_features({"a": [[], np.array([1, 2], "int32")]})
    assert lengths == [0, 2]
    assert [array.dtype for array in arrays["a"]] == ["int32", "int32"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([[1, 2]], "must be a dict"),
        ({}, "must be a dict .* received an empty dict"),
        ({"a": []}, "1 or more"),
        ({"a": [[1]], "b": [[1], [2]]}, "same number of sequences"),
        ({"a": [[1], [1, 2]], "b": [[1], [2]]}, "Sequence 1 .* the same number of tokens"),
        ({"a": [3]}, r"Sequence 0 must be of shape \(num_tokens, ...\)"),
        ({"a": [np.ones((2, 3)), np.ones((2, 4))]}, "of one shape"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, message):
    with pytest.raises(InvalidInputError, match=message):
        read_features(features)


def test_padding_of_what_there_is_not_is_refused():
    assert check_padding({"a": 1}, ["a"]) == {"a": 1}
    with pytest.raises(InvalidInputError, match=r"has values for \['b'\]"):
        check_padding({"b": 1}, ["a"])
