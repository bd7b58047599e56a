import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import Interactions
from keras_deepseek.models.sequential_recommender.interactions import pad_histories

HISTORIES = [[1, 2, 3, 4, 5, 6], [7, 8], [9, 1, 2]]


def test_the_last_item_is_tested_on_and_the_one_before_validates():
    split = Interactions(HISTORIES, 9).leave_last_out()
    assert [history.tolist() for history in split.histories] == [[1, 2, 3, 4], [7, 8], [9]]
    inputs, targets = split.test_data(3)
    assert inputs["item_ids"].tolist() == [[3, 4, 5], [0, 9, 1]]
    assert targets.tolist() == [6, 2]
    inputs, targets = split.validation_data(3)
    assert inputs["item_ids"].tolist() == [[2, 3, 4], [0, 0, 9]]
    assert targets.tolist() == [5, 1]


def test_nothing_that_is_tested_on_is_trained_on():
    split = Interactions([[1, 1, 8, 9], [2, 2, 7, 6]], 9).leave_last_out()
    inputs = split.train_inputs(5)
    assert {*inputs["item_ids"].flat, *inputs["targets"].flat} == {0, 1, 2}
    assert split.item_counts().tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_each_item_but_the_first_is_a_target_once_after_those_before_it(length):
    split = Interactions([[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 2 + [[3, 4]], 9).leave_last_out()
    inputs = split.train_inputs(length)
    targets = inputs["targets"]
    assert sorted(targets[targets != 0]) == sorted([2, 3, 4, 5, 6, 7] * 2 + [4])
    is_target = targets != 0
    np.testing.assert_array_equal(inputs["item_ids"][is_target] + 1, targets[is_target])
    assert np.all((inputs["item_ids"] != 0) == is_target)


def test_histories_are_padded_in_front_and_cut_at_their_beginning():
    padded = pad_histories([[1, 2, 3], [4], []], 2)
    assert padded.tolist() == [[2, 3], [0, 4], [0, 0]]
    assert padded.dtype == "int32"


@pytest.mark.parametrize(
    ("histories", "num_items", "message"),
    [
        ([], 3, "at least one history"),
        ([[1], [0, 2]], 3, "the history of user 1, counted from 0, has 0 to 2"),
        ([[4]], 3, "from 1 to num_items=3"),
        ([[1]], 0, "`num_items` must be"),
        ([3, 1], 3, r"in \[\[3, 1, 7\], \[5\]\]; user 0, counted from 0, has 3"),
        ([[1], [1.5]], 3, r"user 1, counted from 0, has \[1.5\]"),
        ([[[1], [1, 2]]], 3, r"has \[\[1\], \[1, 2\]\]"),
        (["ab"], 3, "has 'ab'"),
        ("ab", 3, "a list of items for each user, .* received 'ab'"),
        (3, 3, "a list of items for each user, .* received 3"),
    ],
)
def test_what_is_refused(histories, num_items, message):
    with pytest.raises(InvalidInputError, match=message):
        Interactions(histories, num_items)


@pytest.mark.parametrize("length", [0, -1, 2.5, None])
@pytest.mark.parametrize("name", ["train_inputs", "validation_data", "test_data"])
def test_rows_have_a_length(name, length):
    split = Interactions(HISTORIES, 9).leave_last_out()
    with pytest.raises(InvalidInputError, match="`length` must be a positive integer, received"):
        getattr(split, name)(length)
