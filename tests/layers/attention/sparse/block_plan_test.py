import numpy as np
import pytest

from keras_deepseek.layers.attention.sparse.block_plan import (
    BlockLayout,
    BlockPlan,
    group_rows,
    plan_blocks,
    plan_rows,
)
from tests.oracles.block_sparse_attention import shown_pairs

GIVEN = np.random.default_rng(0).random((16, 16)) > 0.7
GIVEN[2] = False
LAYOUTS = [
    {"sliding_window": 5, "global_blocks": (0,)},
    {"sliding_window": 9, "global_blocks": (1, -1), "use_causal_mask": True},
    {"block_stride": 3, "use_causal_mask": True},
    {"block_layout": GIVEN},
    {"sliding_window": 3, "block_layout": GIVEN, "use_causal_mask": True},
]


def make_layout(block_size, *, use_causal_mask=False, block_layout=None, **patterns):
    return BlockLayout(block_size, use_causal_mask, visible_blocks=block_layout, **patterns)


def pairs_of(plan, length):
    """Returns how often each position sees each, by the tables."""
    within = np.arange(plan.block_size)
    counts = np.zeros((plan.num_blocks * plan.block_size,) * 2, int)
    for group in plan.groups:
        for row, queries in enumerate(group.queries):
            q = (queries[:, None] * plan.block_size + within).reshape(-1, 1)
            k = (group.keys[row][:, None] * plan.block_size + within).reshape(1, -1)
            np.add.at(counts, (q, k), (group.first_query[row] <= q) & (q <= group.last_query[row]))
    assert not counts[:length, length:].any()
    return counts[:length, :length]


def slots(layout, num_blocks):
    """Returns how many blocks of keys are multiplied for all blocks of queries."""
    plan = plan_blocks(layout, num_blocks * layout.block_size)
    return sum(group.queries.size * group.keys.shape[1] for group in plan.groups)


@pytest.mark.parametrize("length", [1, 3, 4, 30, 64])
@pytest.mark.parametrize("patterns", LAYOUTS)
def test_a_plan_shows_each_pair_that_the_layout_shows_once(patterns, length):
    plan = plan_blocks(make_layout(4, **patterns), length)
    expected = shown_pairs(length, block_size=4, **patterns)
    np.testing.assert_array_equal(pairs_of(plan, length), expected)


@pytest.mark.parametrize("patterns", LAYOUTS)
def test_every_block_is_computed_once_and_found_again(patterns):
    plan = plan_blocks(make_layout(4, **patterns), 60)
    computed = np.concatenate([group.queries.ravel() for group in plan.groups])
    np.testing.assert_array_equal(computed[plan.order], np.arange(15))


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_work_grows_with_the_length_and_not_its_square(is_causal):
    layout = BlockLayout(8, is_causal, 9, (0, -1), num_random_blocks=2)
    assert slots(layout, 128) <= 2.1 * slots(layout, 64)


def test_the_work_is_little_more_than_the_layout_shows():
    for patterns in LAYOUTS:
        layout = make_layout(4, **patterns)
        num_shown = (layout.whole(16) | layout.window(16)).sum()
        assert slots(layout, 16) <= 2 * num_shown


def test_global_rows_are_kept_apart_and_copy_no_keys_twice():
    wide, narrow = plan_blocks(BlockLayout(4, False, 5, (0, -1)), 256).groups
    assert wide.queries.tolist() == [[0, 63]]
    assert wide.keys.shape == (1, 64)
    assert narrow.keys.shape == (62, 5)


def test_rows_of_similar_widths_go_together():
    groups = group_rows(np.array([1, 4, 3, 64, 4, 0]))
    assert [group.tolist() for group in groups] == [[3], [0, 1, 2, 4, 5]]


@pytest.mark.parametrize("patterns", LAYOUTS)
def test_a_row_is_found_by_its_number(patterns):
    layout = make_layout(4, **patterns)
    table = plan_rows(layout, 60)
    assert table.queries.tolist() == [[row] for row in range(15)]
    assert table.keys.shape == (15, (layout.whole(15) | layout.window(15)).sum(1).max())
    plan = BlockPlan(4, 15, (table,), np.arange(15))
    np.testing.assert_array_equal(pairs_of(plan, 60), shown_pairs(60, block_size=4, **patterns))


def test_an_empty_sequence_has_one_block_that_is_all_fill():
    plan = plan_blocks(BlockLayout(4, sliding_window=2), 0)
    assert plan.num_blocks == 1
    assert plan.groups[0].first_query.min() == np.iinfo("int32").max


def test_a_plan_is_made_once_for_a_layout_and_a_length():
    layout = BlockLayout(4, sliding_window=2)
    assert plan_blocks(layout, 12) is plan_blocks(layout, 12)
    assert plan_blocks(layout, 16) is not plan_blocks(layout, 12)
