import pytest

from keras_deepseek.inference.histogram import Histogram


def fill(*values):
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in values:
        histogram.add(value)
    return histogram.values()


def test_a_value_at_a_bound_is_below_it():
    values = fill(0.5, 1.0, 1.5, 4.0, 5.0)
    assert values.counts == (2, 1, 1, 1)
    assert (values.count, values.sum) == (5, 12.0)


def test_a_quantile_lies_between_the_bounds_around_it():
    values = fill(*[0.5] * 50, *[3.0] * 50)
    assert values.quantile(0.25) == 0.5
    assert values.quantile(0.5) == 1.0
    assert values.quantile(0.75) == 3.0
    assert values.quantile(1.0) == 4.0
    assert fill(100.0).quantile(0.5) == 4.0
    assert fill().quantile(0.5) is None


def test_values_are_those_of_their_moment():
    histogram = Histogram((1.0,))
    histogram.add(0.5)
    earlier = histogram.values()
    histogram.add(3.0)
    assert earlier.count == 1
    later = histogram.values().since(earlier)
    assert (later.counts, later.sum) == ((0, 1), pytest.approx(3.0))
    assert earlier.since(None) is earlier


def test_two_can_be_added_up():
    both = fill(0.5, 3.0).plus(fill(3.0))
    assert (both.counts, both.sum) == ((1, 0, 2, 0), 6.5)
