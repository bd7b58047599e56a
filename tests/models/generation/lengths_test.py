from itertools import pairwise

from keras_deepseek.models.generation.token_loop import (
    first_capacity,
    next_capacity,
    round_up,
    total_slots,
)


def test_lengths_are_few_and_waste_little():
    rounded = [round_up(length) for length in range(1, 5000)]
    assert all(length <= rounded_length for length, rounded_length in enumerate(rounded, 1))
    assert all(
        rounded_length <= max(16 * -(-length // 16), 1.25 * length + 1)
        for length, rounded_length in enumerate(rounded, 1)
    )
    assert len(set(rounded)) == 29
    assert all(round_up(length) == length for length in set(rounded))
    assert all(first <= second for first, second in pairwise(rounded))


def test_the_slots_of_all_numbers_of_tokens_are_few_and_within_the_context():
    slot_counts = [total_slots(needed, 4000) for needed in range(1, 4001)]
    assert all(needed <= slots <= 4000 for needed, slots in enumerate(slot_counts, 1))
    assert len(set(slot_counts)) == len({round_up(needed) for needed in range(1, 4001)})
    assert total_slots(4010, 4000) == 4096  # Padding takes slots beyond the context.
    assert total_slots(4001, None) == 4096


def test_a_cache_begins_with_some_room_and_no_more_than_is_needed():
    assert first_capacity(16, 20) == 20
    assert first_capacity(16, 4096) == 160
    assert first_capacity(2048, 100_000) == 2560


def test_a_cache_grows_until_it_is_as_long_as_needed():
    capacities = [160]
    while capacities[-1] < 4000:
        capacities.append(next_capacity(capacities[-1], 4000))
    assert capacities[-1] == 4000
    assert len(capacities) < 15
    assert all(first < second for first, second in pairwise(capacities))
