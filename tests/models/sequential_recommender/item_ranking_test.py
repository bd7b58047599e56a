import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.sequential_recommender.sequential_recommender import (
    NO_ITEM_SCORE,
    ItemScores,
    TopItems,
)


def rank(scores, history, k, exclude_seen):
    """Returns the best items of a user, by sorting them all."""
    order = [item for item in np.argsort(-scores, kind="stable") if item != 0]
    if exclude_seen:
        order = [item for item in order if item not in history]
    return (order + [0] * k)[:k]


def draw(num_items=9, length=4, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(5, num_items + 1)).astype("float32")
    scores[:, 0] = NO_ITEM_SCORE
    return scores, rng.integers(0, num_items + 1, (5, length)).astype("int32")


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize(("num_items", "k"), [(9, 3), (9, 9), (30, 1), (5, 4)])
def test_it_is_the_ranking_of_all_items(exclude_seen, num_items, k):
    scores, histories = draw(num_items)
    ranking = TopItems(k, exclude_seen)(scores, histories)
    items, best = (keras.ops.convert_to_numpy(ranking[name]) for name in ("items", "scores"))
    expected = [rank(*user, k, exclude_seen) for user in zip(scores, histories, strict=True)]
    np.testing.assert_array_equal(items, expected)
    at = np.take_along_axis(scores, items, axis=1)
    np.testing.assert_array_equal(best[items != 0], at[items != 0])


def test_a_user_who_has_seen_all_gets_nothing():
    scores, _ = draw(3, seed=1)
    histories = np.tile(np.array([[1, 2, 3, 3]], "int32"), (5, 1))
    assert not keras.ops.convert_to_numpy(TopItems(2)(scores, histories)["items"]).any()


def test_more_items_than_there_are_can_not_be_asked_for():
    with pytest.raises(InvalidInputError, match="`k` must be at most the 9 items, received 10"):
        TopItems(10)(*draw())


def test_a_length_must_be_known_where_what_is_seen_is_left_out():
    inputs = [keras.Input((10,)), keras.Input((None,), dtype="int32")]
    with pytest.raises(InvalidInputError, match="histories of a static length"):
        TopItems(2, name="top")(*inputs)
    assert TopItems(2, exclude_seen=False)(*inputs)["items"].shape == (None, 2)


def test_the_round_trip_through_its_config():
    layer = TopItems.from_config(TopItems(4, exclude_seen=False).get_config())
    assert (layer.k, layer.exclude_seen) == (4, False)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_scores_are_in_float32_and_that_of_padding_is_below_all(dtype):
    logits = keras.ops.cast(np.array([[9.0, -5.0, 1.0]]), "float16")
    scores = ItemScores(dtype=dtype)(logits)
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    expected = np.array([[NO_ITEM_SCORE, -5.0, 1.0]], "float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(scores), expected)
