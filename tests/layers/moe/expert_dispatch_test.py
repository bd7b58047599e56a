import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.layers.moe import expert_dispatch
from keras_deepseek.layers.moe.expert_dispatch import (
    choose_block_size,
    choose_looped_block_size,
    count_blocks,
    count_capacity,
    dispatch_by_load,
    dispatch_to_blocks,
    dispatch_to_capacity,
    is_worth_a_loop,
)


def draw_indices(num_tokens, per_token, num_experts):
    """Some rows choose nobody."""
    rng = np.random.default_rng(num_tokens)
    rows = [rng.permutation(num_experts)[:per_token] for _ in range(num_tokens)]
    indices = np.array(rows, "int32").reshape(num_tokens, per_token)
    indices[rng.random(num_tokens) < 0.2] = num_experts
    return indices


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def check_slots(plan, indices, num_experts):
    """Every computed choice has a slot of its own, which holds its token."""
    is_computed, slots = to_numpy(plan.is_computed), to_numpy(plan.slot_of_choice)
    assert not is_computed[indices == num_experts].any()
    assert len(set(slots[is_computed])) == is_computed.sum()
    tokens = np.broadcast_to(np.arange(len(indices))[:, None], indices.shape)
    slot_tokens = to_numpy(plan.token_of_slot)[slots[is_computed]]
    np.testing.assert_array_equal(slot_tokens, tokens[is_computed])


@settings(max_examples=12)
@given(
    num_tokens=st.integers(1, 40),
    num_experts=st.integers(1, 7),
    per_token=st.integers(1, 3),
    block_size=st.integers(1, 9),
)
def test_every_choice_gets_a_slot_in_a_block_of_its_expert(
    num_tokens, num_experts, per_token, block_size
):
    indices = draw_indices(num_tokens, min(per_token, num_experts), num_experts)
    plan = dispatch_to_blocks(keras.ops.convert_to_tensor(indices), num_experts, block_size)
    check_slots(plan, indices, num_experts)
    is_computed = to_numpy(plan.is_computed)
    np.testing.assert_array_equal(is_computed, indices < num_experts)
    experts = to_numpy(plan.expert_of_block)[to_numpy(plan.slot_of_choice) // block_size]
    np.testing.assert_array_equal(experts[is_computed], indices[is_computed])


def test_the_worst_load_fits():
    """All experts but one have one row, and the last has the rest."""
    flat = [0, 1, 2] + [3] * 6
    indices = keras.ops.convert_to_tensor(np.array(flat, "int32")[:, None])
    plan = dispatch_to_blocks(indices, 4, 4)
    assert tuple(plan.token_of_slot.shape) == (5 * 4,)
    check_slots(plan, np.array(flat)[:, None], 4)


def test_by_load_every_choice_gets_a_slot_among_those_of_its_expert():
    indices = draw_indices(30, 2, 5)
    plan = dispatch_by_load(keras.ops.convert_to_tensor(indices), 5, 2**20)
    if keras.backend.backend() == "jax":
        assert plan is None
        return
    assert plan.is_computed is None
    experts, slots = indices.ravel(), to_numpy(plan.slot_of_choice).ravel()
    assert sorted(slots) == list(range(60))
    np.testing.assert_array_equal(to_numpy(plan.token_of_slot)[slots], np.arange(60) // 2)
    # The slots after the last end are those of no expert.
    found = np.searchsorted(to_numpy(plan.ends_of_loads), slots, side="right")
    np.testing.assert_array_equal(found, experts)


def test_little_work_is_not_done_by_load():
    indices = keras.ops.convert_to_tensor(draw_indices(30, 2, 5))
    assert dispatch_by_load(indices, 5, 12) is None


def test_a_capacity_keeps_the_first_choices_of_each_expert():
    indices = np.array([[0, 1], [0, 2], [0, 1], [3, 3]], "int32")
    plan = dispatch_to_capacity(keras.ops.convert_to_tensor(indices), 3, 2)
    expected = [[True, True], [True, True], [False, True], [False, False]]
    np.testing.assert_array_equal(to_numpy(plan.is_computed), expected)
    check_slots(plan, indices, 3)
    experts = to_numpy(plan.slot_of_choice) // 2
    np.testing.assert_array_equal(experts[expected], indices[expected])


@pytest.mark.parametrize(
    ("num_choices", "block_size", "expected"), [(0, 8, 0), (3, 1, 3), (3, 8, 3), (64, 8, 15)]
)
def test_there_are_blocks_for_any_load_and_no_more(num_choices, block_size, expected):
    assert count_blocks(num_choices, 8, block_size) == expected


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, 3), (1.25, 4), (0.1, 1), (4.0, 12)]
)  # 24 choices of 8 experts: 3 each.
def test_the_capacity_is_rounded_up(factor, expected):
    assert count_capacity(12, 8, 2, factor) == expected


def test_the_cheapest_way_goes_by_the_number_of_tokens():
    assert choose_block_size(1, 6, 64) == 1  # Six kernels of 64 are enough.
    assert choose_block_size(16, 32, 4) is None  # All experts are needed, and little is wasted.
    sizes = [choose_block_size(n, 2 * n, 64) for n in (1, 256, 4096, 65536)]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[1]


def test_a_loop_takes_blocks_of_about_an_experts_load():
    assert choose_looped_block_size(8, 256) == 1  # Hardly any expert has two.
    assert choose_looped_block_size(16, 16) == 2
    sizes = [choose_looped_block_size(16 * load, 16) for load in (4, 64, 1024)]
    assert sizes == sorted(sizes)
    assert sizes[0] > 1
    assert sizes[-1] > sizes[0]


@pytest.mark.parametrize("num_choices", [1, 16, 300, 5000])
def test_the_size_in_a_loop_is_the_same_where_the_number_is_a_tensor(num_choices):
    size = choose_looped_block_size(keras.ops.convert_to_tensor(num_choices), 16)
    assert int(size) == choose_looped_block_size(num_choices, 16)


def test_a_loop_is_worth_it_for_many_choices_and_large_kernels():
    assert is_worth_a_loop(16, 2**16)
    assert not is_worth_a_loop(2, 2**20)
    assert not is_worth_a_loop(16, 2**10)
    assert is_worth_a_loop(keras.ops.convert_to_tensor(2), 2**10)  # So few, but who knows.


def test_an_unknown_number_of_tokens_gets_the_default():
    unknown = keras.ops.convert_to_tensor(5)
    expected = expert_dispatch._DEFAULT_BLOCK_SIZE
    assert choose_block_size(unknown, unknown * 2, 64) == expected
