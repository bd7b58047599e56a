import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.training import MaskedTokens

OPTIONS = {"mask_token_id": 4, "vocabulary_size": 60, "special_token_ids": (1, 2)}


def draw_rows(count=10, length=20):
    rows = np.random.default_rng(0).integers(5, 60, (count, length))
    rows[:, 0] = 1
    rows[1, 12:] = 0
    return rows


def make_data(rows=None, batch_size=4, **options):
    rows = draw_rows() if rows is None else rows
    return MaskedTokens({"token_ids": rows}, batch_size, **{**OPTIONS, **options})


def test_an_epoch_has_each_row_once():
    data, rows = make_data(), draw_rows()
    assert len(data) == 3
    read_rows = []
    for inputs, targets in map(data.__getitem__, range(3)):
        read_rows += np.where(targets >= 0, targets, inputs["token_ids"]).tolist()
        np.testing.assert_array_equal(inputs["padding_mask"], inputs["token_ids"] != 0)
        assert not inputs["segment_ids"].any()
    assert sorted(read_rows) == sorted(rows.tolist())


def test_rows_keep_their_order_without_shuffling_and_their_masks_change_each_epoch():
    data, rows = make_data(shuffle=False), draw_rows()
    inputs, targets = data[1]
    np.testing.assert_array_equal(np.where(targets >= 0, targets, inputs["token_ids"]), rows[4:8])
    again, _ = data[1]
    np.testing.assert_array_equal(again["token_ids"], inputs["token_ids"])
    data.on_epoch_end()
    assert np.any(data[1][0]["token_ids"] != inputs["token_ids"])


def test_one_seed_gives_one_sequence_of_batches():
    first, again, other = (make_data(seed=seed)[0][0]["token_ids"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_mask_positions_are_as_many_in_each_batch_and_say_where_the_targets_are():
    whole, gathered = make_data(), make_data(use_mask_positions=True)
    for index in range(3):
        (inputs, targets), (other, chosen) = whole[index], gathered[index]
        np.testing.assert_array_equal(other["token_ids"], inputs["token_ids"])
        positions = other["mask_positions"]
        assert positions.shape == chosen.shape == (len(targets), 3)  # 15 in 100 of 19.
        at = np.take_along_axis(targets, np.maximum(positions, 0), axis=1)
        np.testing.assert_array_equal(np.where(positions >= 0, at, -100), chosen)
        assert (chosen >= 0).sum() == (targets >= 0).sum()


def test_given_masks_and_segments_are_kept():
    rows = draw_rows()
    segments, mask = np.arange(10)[:, None] % 2 + 0 * rows, np.ones_like(rows)
    data = MaskedTokens(
        {"token_ids": rows, "segment_ids": segments, "padding_mask": mask},
        10,
        shuffle=False,
        **OPTIONS,
    )
    inputs, _ = data[0]
    np.testing.assert_array_equal(inputs["segment_ids"], segments)
    assert inputs["padding_mask"].all()


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({}, {}, 'a dict with "token_ids", received'),
        ([[1]], {}, "received list"),
        ({"token_ids": np.full((2, 3), 60)}, {}, "below vocabulary_size=60"),
        (
            {"token_ids": draw_rows(), "segment_ids": np.zeros((2, 2))},
            {},
            "have the same shape; 'segment",
        ),
        ({"token_ids": draw_rows()}, {"share": 0}, "`share` must be"),
        ({"token_ids": draw_rows()}, {"batch_size": 0}, "`batch_size` must be"),
    ],
)
def test_what_is_refused(inputs, options, message):
    with pytest.raises(InvalidInputError, match=message):
        MaskedTokens(inputs, **{**OPTIONS, **options})
