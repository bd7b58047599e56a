import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.attention.sparse.block_plan import BlockLayout


def picture(pairs):
    return ["".join("x" if is_visible else "." for is_visible in row) for row in pairs]


def test_global_blocks_see_all_and_are_seen_by_all():
    whole = BlockLayout(4, global_blocks=(0, -1)).whole(4)
    assert picture(whole) == ["xxxx", "x..x", "x..x", "xxxx"]


def test_a_stride_shows_the_own_block_and_those_at_its_multiples():
    whole = BlockLayout(4, block_stride=2).whole(5)
    assert picture(whole) == ["x.x.x", ".x.x.", "x.x.x", ".x.x.", "x.x.x"]


@pytest.mark.parametrize(
    ("sliding_window", "rows"),
    [
        (1, ["x..", ".x.", "..x"]),
        (2, ["xx.", "xxx", ".xx"]),
        (5, ["xx.", "xxx", ".xx"]),
        (6, ["xxx", "xxx", "xxx"]),
    ],
)
def test_a_window_touches_the_blocks_that_hold_a_position_of_it(sliding_window, rows):
    assert picture(BlockLayout(4, sliding_window=sliding_window).window(3)) == rows


def test_causal_layouts_show_no_later_block():
    layout = BlockLayout(
        4,
        True,
        sliding_window=9,
        global_blocks=(1,),
        num_random_blocks=2,
        visible_blocks=np.ones((6, 6)) > 0,
    )
    assert not np.triu(layout.whole(6) | layout.window(6), 1).any()


def test_patterns_are_joined():
    layout = BlockLayout(4, global_blocks=(0,), block_stride=3, visible_blocks=np.eye(4)[::-1] > 0)
    assert picture(layout.whole(4)) == ["xxxx", "xxx.", "xxx.", "x..x"]


@pytest.mark.parametrize("is_causal", [False, True])
def test_random_blocks_are_as_many_as_asked_for_beyond_the_others(is_causal):
    layout = BlockLayout(4, is_causal, 2, (0,), num_random_blocks=3)
    base_layout = BlockLayout(4, is_causal, 2, (0,))
    base = base_layout.whole(16) | base_layout.window(16)
    drawn = layout.whole(16) & ~base
    room = (np.tril(~base) if is_causal else ~base).sum(1)
    np.testing.assert_array_equal(drawn.sum(1), np.minimum(3, room))


def test_the_seed_alone_says_which_random_blocks():
    first, same, other = (
        BlockLayout(4, num_random_blocks=2, layout_seed=seed).whole(32) for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_a_given_layout_serves_shorter_sequences_by_its_corner():
    visible_blocks = np.random.default_rng(0).random((5, 5)) > 0.5
    np.testing.assert_array_equal(
        BlockLayout(4, visible_blocks=visible_blocks).whole(3), visible_blocks[:3, :3]
    )


def test_a_sequence_beyond_the_given_layout_is_refused():
    layout = BlockLayout(4, visible_blocks=np.eye(3) > 0)
    with pytest.raises(InvalidInputError, match=r"covers 3 blocks of 4 .*sequence of 4 blocks"):
        layout.whole(4)


def test_global_blocks_that_a_short_sequence_lacks_are_left_out():
    assert not BlockLayout(4, global_blocks=(5, -5)).whole(3).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "`block_size` must be a positive integer, received 0"),
        ({"block_size": 8.0}, r"`block_size` must be a positive integer, received 8\.0"),
        ({"sliding_window": 0}, "`sliding_window` must be a positive integer"),
        ({"sliding_window": True}, "`sliding_window` must be a positive integer"),
        ({"block_stride": -2}, "`block_stride` must be a positive integer, received -2"),
        ({"num_random_blocks": -1}, "`num_random_blocks` must be an integer of at least 0"),
        ({"layout_seed": None}, "`layout_seed` must be an integer of at least 0, received None"),
        ({"global_blocks": (0.5,)}, r"`global_blocks` must be .* integers, .* received \(0\.5,\)"),
        ({"global_blocks": [True]}, r"`global_blocks` must be .* received \[True\]"),
        ({"global_blocks": 3}, "`global_blocks` must be .* received 3"),
        ({"global_blocks": "01"}, "`global_blocks` must be .* received '01'"),
        ({"visible_blocks": np.eye(3)}, "`block_layout` must hold booleans, received float64"),
        (
            {"visible_blocks": np.ones((2, 3), bool)},
            r"\(num_blocks, num_blocks\), received \(2, 3\)",
        ),
        ({"visible_blocks": np.ones((0, 0), bool)}, r"received \(0, 0\)"),
        ({"visible_blocks": np.ones(3, bool)}, r"received \(3,\)"),
        ({}, "The layout shows no block to any position. Give at least one of `sliding_window`"),
    ],
)
def test_what_is_no_layout_is_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        BlockLayout(**{"block_size": 4, **arguments})


def test_numbers_of_numpy_and_any_iterable_of_blocks_are_taken():
    for blocks in ([0, 2], (0, 2), range(0, 3, 2), np.array([0, 2]), iter([0, np.int32(2)])):
        layout = BlockLayout(np.int64(4), global_blocks=blocks, block_stride=np.uint8(7))
        assert layout.global_blocks == (0, 2)
        assert [type(block) for block in layout.global_blocks] == [int, int]
        assert (type(layout.block_size), type(layout.block_stride)) == (int, int)


def test_a_sequence_that_does_not_reach_a_global_block_is_without_it():
    layout = BlockLayout(4, global_blocks=(0, 3, -4))
    assert picture(layout.whole(2)) == ["xx", "x."]
    assert picture(layout.whole(4)) == ["xxxx", "x..x", "x..x", "xxxx"]
