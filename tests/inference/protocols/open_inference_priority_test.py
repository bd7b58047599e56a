import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols.open_inference_parameters import (
    TimeoutAndPriority,
    read_timeout_and_priority,
)


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
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"'{name}' must be a whole number"):
        read_timeout_and_priority({name: value})
