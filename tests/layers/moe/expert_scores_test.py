import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.layers.moe.expert_scores import SCORINGS, expert_hits, hide_other_groups
from keras_deepseek.testing import assert_close
from tests.oracles import moe


@pytest.mark.parametrize("name", sorted(SCORINGS))
def test_a_scoring_computes_its_formula(name):
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype("float32") * 4
    scores = keras.ops.convert_to_numpy(SCORINGS[name](keras.ops.convert_to_tensor(logits)))
    assert_close(scores, [moe.SCORINGS[name](row.astype("float64")) for row in logits])


@pytest.mark.parametrize("name", sorted(SCORINGS))
@pytest.mark.parametrize("logit", [-1000.0, -110.0, 0.0, 110.0, 1000.0])
def test_scores_and_gradients_are_finite_at_any_logit(name, logit):
    logits = np.array([[logit, 1.0]], "float32")

    def total(x):
        return keras.ops.sum(SCORINGS[name](x)[..., 0])

    (gradient,), _ = backend.current().compute.compute_gradients(total, [logits], [])
    assert np.isfinite(gradient).all()
    assert np.isfinite(keras.ops.convert_to_numpy(SCORINGS[name](logits))).all()


@pytest.mark.parametrize(
    ("group_scoring", "best_group"),
    [("max", [0, 1]), ("top2_sum", [2, 3])],  # The best expert, or the best pair.
)
def test_the_best_group_is_the_one_of_its_scoring(group_scoring, best_group):
    scores = np.array([[0.9, 0.0, 0.6, 0.5, 0.4, 0.4]], "float32")
    hidden = keras.ops.convert_to_numpy(hide_other_groups(scores, 3, 1, group_scoring))
    assert np.flatnonzero(np.isfinite(hidden[0])).tolist() == best_group
    np.testing.assert_array_equal(hidden[0, best_group], scores[0, best_group])


def test_an_index_that_names_no_expert_hits_none():
    hits = expert_hits(keras.ops.convert_to_tensor(np.array([[0, 3], [2, 1]], "int32")), 3)
    expected = [[[1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 0]]]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(hits), expected)
