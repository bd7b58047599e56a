import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.http_limits import HttpLimits


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1", None])
def test_a_limit_that_limits_nothing_is_refused(value):
    with pytest.raises(InvalidInputError, match=f"Received idle_seconds={value!r}"):
        HttpLimits(idle_seconds=value)


def test_the_clock_is_looked_at_often_enough_for_the_shortest_limit():
    assert HttpLimits(write_seconds=0.1).tick_seconds == pytest.approx(0.025)
    assert HttpLimits().tick_seconds <= 1.0
