import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import SyntheticInteractions


def make(**options):
    return SyntheticInteractions(
        **{"num_users": 3000, "num_categories": 3, "num_styles": 2, "items_per_group": 2, **options}
    )


def test_histories_are_of_the_lengths_and_items_that_were_asked_for():
    data = make(num_users=500, shortest=4, longest=7).draw()
    assert {len(history) for history in data.histories} == {4, 5, 6, 7}
    assert data.num_items == 12
    assert set(np.concatenate(data.histories)) == set(range(1, 13))


def test_the_seed_says_what_is_drawn():
    first, again, other = (make(num_users=20, seed=seed).draw().histories for seed in (1, 1, 2))
    assert [history.tolist() for history in first] == [history.tolist() for history in again]
    assert [history.tolist() for history in first] != [history.tolist() for history in other]


def test_items_follow_as_likely_as_the_law_says():
    interactions = make(shortest=30)
    histories = interactions.draw().histories
    earlier_items = [history[:-1] for history in histories]
    expected = interactions.next_probabilities(earlier_items)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    # Each item's count is the sum of its probabilities, to what chance leaves.
    last = np.array([history[-1] for history in histories])
    counts = np.bincount(last, minlength=13)[1:]
    spread = np.sqrt((expected * (1 - expected)).sum(axis=0))
    assert np.abs((counts - expected.sum(axis=0)) / spread).max() < 4
    # And the likeliest two are hit as often as they are likely.
    top = np.argsort(-expected, axis=1)[:, :2] + 1
    hits = np.mean(np.any(top == last[:, None], axis=1))
    assert hits == pytest.approx(interactions.best_hit_rate(earlier_items, k=2), abs=0.03)


def test_both_of_the_last_two_items_matter():
    interactions = make(follow=1.0)
    first, other_style, other_category = (
        interactions.next_probabilities([np.array(history)])[0] > 0
        for history in ([1, 1], *_histories_that_differ(interactions))
    )
    assert first.sum() == 2
    assert not np.array_equal(first, other_style)
    assert not np.array_equal(first, other_category)


def _histories_that_differ(interactions):
    """Returns a history with another item before the last, and one with another last item."""
    same = interactions.next_probabilities([np.array([1, 1])])
    for position in (0, 1):
        for item in range(2, 13):
            history = [1, 1]
            history[position] = item
            if np.any(interactions.next_probabilities([np.array(history)]) != same):
                yield history
                break


def test_without_the_law_the_best_is_popularity():
    interactions = make(follow=0.0)
    expected = np.sort(1 / np.arange(1, 13))[::-1]
    expected = expected[:3].sum() / expected.sum()
    assert interactions.best_hit_rate([np.array([1, 2])], k=3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_users": 0}, "`num_users` must be"),
        ({"shortest": 2}, "`shortest` must be an integer of at least 3"),
        ({"shortest": 9, "longest": 8}, "`longest` at least `shortest`"),
        ({"follow": 1.5}, "`follow` must be at most 1"),
        ({"follow": -0.5}, "`follow` must be"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        make(**options)
