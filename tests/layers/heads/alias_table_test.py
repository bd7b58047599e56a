import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.layers.heads.sampled_softmax import make_alias_table


def probabilities_of(chances, aliases):
    """Returns how likely each class is, when a draw goes by the table."""
    probabilities = np.asarray(chances, "float64") / len(chances)
    np.add.at(probabilities, aliases, (1 - np.asarray(chances, "float64")) / len(chances))
    return probabilities


@settings(max_examples=30)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=30))
def test_a_draw_by_it_has_the_probabilities(weights):
    expected = np.array(weights) / np.sum(weights)
    chances, aliases = make_alias_table(expected)
    assert (chances.dtype, aliases.dtype) == ("float32", "int32")
    np.testing.assert_allclose(probabilities_of(chances, aliases), expected, atol=1e-7)


@pytest.mark.parametrize("zeros", [[0], [0, 3], [1, 2, 4]])
def test_what_has_no_probability_is_never_drawn(zeros):
    weights = np.array([0.2, 0.1, 0.3, 0.15, 0.25])
    weights[zeros] = 0
    probabilities = probabilities_of(*make_alias_table(weights / weights.sum()))
    np.testing.assert_array_equal(probabilities[zeros], 0)
    np.testing.assert_allclose(probabilities, weights / weights.sum(), atol=1e-7)
