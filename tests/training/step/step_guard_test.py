import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import StepGuard


def test_a_guard_stops_at_once_unless_told_otherwise():
    guard = StepGuard()
    assert (guard.action, guard.spike, guard.most_in_a_row) == ("stop", None, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "skp"}, "Unknown guard 'skp': did you mean 'skip'"),
        ({"spike": 0}, "`spike` must be a finite number above 0, received 0"),
        ({"most_in_a_row": 0}, "`most_in_a_row` must be a positive integer, received 0"),
    ],
)
def test_what_is_no_guard_is_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        StepGuard(**arguments)
