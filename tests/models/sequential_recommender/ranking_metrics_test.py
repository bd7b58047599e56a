import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import HitRate, NormalizedDiscountedCumulativeGain
from keras_deepseek.models.sequential_recommender.ranking_metrics import rank_targets
from keras_deepseek.testing import assert_close


def draw(count=40, num_items=12, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (count, num_items + 1)).astype("float32")  # With equal ones.
    return rng.integers(1, num_items + 1, count).astype("int32"), scores


def ranks_by_sorting(targets, scores):
    orders = np.argsort(-scores, axis=1, kind="stable")
    return np.argmax(orders == targets[:, None], axis=1)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_ranks_are_those_of_sorting(shape):
    targets, scores = draw()
    ranks = keras.ops.convert_to_numpy(rank_targets(targets.reshape(shape), scores))
    np.testing.assert_array_equal(ranks, ranks_by_sorting(targets, scores))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_both_are_the_means_that_their_formulas_say(k):
    targets, scores = draw()
    ranks = ranks_by_sorting(targets, scores)
    expected = {
        HitRate: np.mean(ranks < k),
        NormalizedDiscountedCumulativeGain: np.mean(np.where(ranks < k, 1 / np.log2(ranks + 2), 0)),
    }
    for kind, value in expected.items():
        metric = kind(k)
        for rows in (slice(0, 7), slice(7, None)):
            metric.update_state(targets[rows], scores[rows])
        assert_close(keras.ops.convert_to_numpy(metric.result()), value)
        metric.reset_state()
        metric.update_state(targets[:1], scores[:1])
        assert float(metric.result()) == pytest.approx(float(value_of(kind, ranks[0], k)))


def value_of(kind, rank, k):
    if rank >= k:
        return 0.0
    return 1.0 if kind is HitRate else 1 / np.log2(rank + 2)


def test_weights_say_how_much_a_user_counts():
    targets, scores = np.array([1, 1]), np.array([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    metric = HitRate(1)
    metric.update_state(targets, scores, sample_weight=np.array([3.0, 1.0]))
    assert float(metric.result()) == 0.75


def test_a_model_that_gives_no_number_or_always_the_same_is_not_flattered():
    targets = np.full(20, 12)
    for scores in (np.zeros((20, 13), "float32"), np.full((20, 13), np.nan, "float32")):
        metric = HitRate(10)
        metric.update_state(targets, scores)
        assert float(metric.result()) == 0


def test_what_they_keep_are_sums_which_processes_add_up():
    targets, scores = draw()
    whole, parts = HitRate(3), [HitRate(3), HitRate(3)]
    whole.update_state(targets, scores)
    for part, rows in zip(parts, (slice(0, 11), slice(11, None)), strict=True):
        part.update_state(targets[rows], scores[rows])
    for variable, *of_parts in zip(whole.variables, *(p.variables for p in parts), strict=True):
        total = sum(keras.ops.convert_to_numpy(part_variable) for part_variable in of_parts)
        assert_close(total, keras.ops.convert_to_numpy(variable))


@pytest.mark.parametrize("kind", [HitRate, NormalizedDiscountedCumulativeGain])
def test_the_round_trip_through_its_config(kind):
    metric = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(kind(5, name="mine"))
    )
    assert (type(metric), metric.k, metric.name) == (kind, 5, "mine")
    assert kind(5).name.endswith("_at_5")


def test_k_must_be_a_positive_integer():
    with pytest.raises(InvalidInputError, match="`k` must be a positive integer"):
        HitRate(0)
