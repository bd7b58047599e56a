import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import open_inference_parameters
from keras_deepseek.inference.protocols.open_inference_parameters import (
    TimeoutAndPriority,
    read_timeout_and_priority,
)


def top(values, count, dtype="float32"):
    return open_inference_parameters.largest(np.asarray(values).astype(dtype), count, "x").tolist()


def test_the_largest_come_first_with_their_places():
    assert top([[1, 5, 10, 4], [9, 8, 7, 6]], 2) == [
        [b"10.000000:2", b"5.000000:1"],
        [b"9.000000:0", b"8.000000:1"],
    ]


@pytest.mark.parametrize("dtype", ["int8", "uint64"])
def test_integers_have_no_point(dtype):
    assert top([[1, 5, 3]], 2, dtype) == [[b"5:1", b"3:2"]]


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_floats_of_any_length_have_six_places(dtype):
    pytest.importorskip("ml_dtypes")
    assert top([[0.5, 0.25]], 1, dtype) == [[b"0.500000:0"]]


def test_of_equals_the_first_comes_first():
    assert top([[1, 2, 2, 1]], 3) == [[b"2.000000:1", b"2.000000:2", b"1.000000:0"]]


def test_there_are_no_more_than_there_are_values():
    assert top([[1, 2]], 9) == [[b"2.000000:1", b"1.000000:0"]]
    assert top(np.zeros((0, 2)), 1) == []


def test_more_axes_are_counted_as_one():
    assert top([[[1, 2], [4, 3]]], 1) == [[b"4.000000:2"]]


@pytest.mark.parametrize("array", [np.zeros(3), np.array(1.5), np.array([[b"a"]], object)])
def test_an_output_without_rows_of_numbers_is_refused(array):
    with pytest.raises(InvalidInputError, match="rows of numbers"):
        open_inference_parameters.largest(array, 1, "x")


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", [1]])
def test_a_count_is_an_integer_of_at_least_1(value):
    with pytest.raises(InvalidInputError, match="x: received classification="):
        open_inference_parameters.read_count(value, "x")


def test_without_the_parameter_the_output_itself_is_wanted():
    assert open_inference_parameters.read_count(None, "x") == 0
    assert open_inference_parameters.read_count(3, "x") == 3


def test_triton_s_highest_priority_is_the_highest_and_the_default_below_all():
    levels = [1, 2, 3, 2**64 - 1, 0]
    priorities = [read_timeout_and_priority({"priority": level}).priority for level in levels]
    assert priorities == sorted(set(priorities), reverse=True)
    assert priorities[-1] == read_timeout_and_priority({}).priority == 0


def test_a_timeout_is_in_microseconds_and_0_is_none():
    assert read_timeout_and_priority({"timeout": 1_500_000}).timeout == 1.5
    assert read_timeout_and_priority({"timeout": 0}).timeout is None
    assert read_timeout_and_priority({"sequence_id": "x"}) == TimeoutAndPriority(None, 0)


@pytest.mark.parametrize(
    ("first", "second", "timeout"), [(1, 2, 1), (2, 1, 1), (None, 1, 1), (1, None, 1)]
)
def test_the_shorter_of_two_limits_holds(first, second, timeout):
    assert TimeoutAndPriority(first, 7).within(second) == (timeout, 7)


@pytest.mark.parametrize("value", [-1, 1.5, True, "1", None, 2**64, [1]])
@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_a_parameter_that_is_no_whole_number_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"'{name}' must be a whole number"):
        read_timeout_and_priority({name: value})
