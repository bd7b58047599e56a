import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.layers.size_check import check_size


def test_a_positive_integer_is_returned():
    assert check_size("num_heads", 3) == 3


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
def test_anything_else_is_refused_by_the_arguments_name(value):
    with pytest.raises(InvalidInputError, match="`num_heads` must be a positive integer, received"):
        check_size("num_heads", value)
