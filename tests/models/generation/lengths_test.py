from itertools import pairwise

from keras_deepseek.models.generation.lengths import first_capacity, next_capacity, round_up


def test_lengths_are_few_and_waste_little():
    rounded = [round_up(length) for length in range(1, 5000)]
    assert all(length <= found for length, found in enumerate(rounded, 1))
    assert all(
        found <= max(16 * -(-length // 16), 1.25 * length + 1)
        for length, found in enumerate(rounded, 1)
    )
    assert len(set(rounded)) == 29
    assert all(round_up(length) == length for length in set(rounded))
    assert all(first <= second for first, second in pairwise(rounded))


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
