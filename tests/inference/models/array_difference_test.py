import numpy as np
import pytest

from keras_deepseek.inference.models.array_difference import relative_difference

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("expected", "received", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0], [1e-3], 0.1),
        ([NAN, 2.0], [NAN, 3.0], 0.5),
        ([INF, 2.0], [INF, 3.0], 0.5),
        ([NAN], [1.0], INF),
        ([1.0], [NAN], INF),
        ([INF], [-INF], INF),
        ([3, 4], [3, 5], 0.25),
        ([True, False], [True, True], 1.0),
        ([b"a"], [b"a"], 0.0),
        ([b"a"], [b"b"], INF),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_the_difference_is_relative_to_the_largest_value(expected, received, difference):
    kind = object if expected and isinstance(expected[0], bytes) else None
    arrays = [np.array(values, kind) for values in (expected, received)]
    with np.errstate(invalid="ignore"):
        assert relative_difference(*arrays) == pytest.approx(difference)
