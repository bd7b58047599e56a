import random

from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.training.parameter_server.workers import StalenessBound


def test_a_bound_of_zero_is_one_after_the_other():
    bound = StalenessBound(0, num_workers=3)
    assert bound.most_before == 0
    assert bound.may_begin()
    bound.begin(0)
    assert not bound.may_begin()
    bound.end(0)
    assert bound.may_begin()


def test_a_slow_worker_makes_the_others_wait():
    bound = StalenessBound(2, num_workers=2)
    bound.begin(0)
    bound.begin(1)
    bound.end(1)
    bound.begin(2)
    bound.end(2)  # Batch 0 has missed batches 1 and 2.
    assert not bound.may_begin()
    bound.end(0)
    assert bound.may_begin()


def test_a_bound_of_four_for_each_worker_leaves_room_to_pull_ahead():
    for num_workers in (1, 2, 8):
        assert StalenessBound(4 * num_workers, num_workers).most_before == num_workers
        assert StalenessBound(num_workers - 1, num_workers).most_before == 0


@given(st.integers(0, 8), st.integers(1, 4), st.randoms(use_true_random=False))
def test_no_update_misses_more_than_the_bound(most, num_workers, choose: random.Random):
    bound = StalenessBound(most, num_workers)
    num_updates = 0
    under_way: dict[int, int] = {}  # By number, the updates that were in its weights.
    for number in range(60):
        while not bound.may_begin() or (under_way and choose.random() < 0.4):
            done = choose.choice(sorted(under_way))
            assert num_updates - under_way.pop(done) <= most
            bound.end(done)
            num_updates += 1
        bound.begin(number)
        # As old as they may be.
        under_way[number] = max(0, num_updates - choose.randint(0, bound.most_before))
