import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import StepGuard


def test_the_default_action_is_stop():
    guard = StepGuard()
    assert (guard.action, guard.spike, guard.most_in_a_row) == ("stop", None, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "skp"}, "must be 'stop', 'skip' or 'roll_back'.* received 'skp'"),
        ({"spike": 0}, "`spike` must be a finite number above 0, received 0"),
        ({"most_in_a_row": 0}, "`most_in_a_row` must be a positive integer, received 0"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        StepGuard(**arguments)
