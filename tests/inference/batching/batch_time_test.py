import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.inference.batching.batch_time import NUM_KEPT, NUM_UNTIL_STALE, BatchTime


def test_nothing_is_known_before_a_batch_was_measured():
    time = BatchTime()
    assert not time.is_known
    assert time.predict(8) == 0.0


def test_a_line_through_the_sizes_predicts_those_that_were_not_seen():
    time = BatchTime()
    for rows in (1, 2, 8):
        time.add(rows, 0.004 + 0.00025 * rows)
    assert time.overhead == pytest.approx(0.004)
    assert time.per_row == pytest.approx(0.00025)
    assert time.predict(32) == pytest.approx(0.012)


def test_one_size_alone_is_all_overhead_and_newer_batches_count_more():
    time = BatchTime()
    time.add(4, 0.010)
    assert (time.overhead, time.per_row) == (0.010, 0.0)
    for _ in range(100):
        time.add(4, 0.020)
    assert time.predict(4) == pytest.approx(0.020, rel=1e-3)


def test_a_slow_batch_is_an_exception_until_most_are_slow():
    time = BatchTime()
    time.add(1, 0.005)
    time.add(1, 10.0)
    assert time.predict(1) == 0.005
    for _ in range(NUM_KEPT):
        time.add(1, 0.005)
    for _ in range(NUM_KEPT // 2):
        time.add(1, 10.0)
        assert time.overhead == 0.005
    time.add(1, 10.0)
    assert time.overhead == 10.0


def run_others(time, rounds):
    """The model runs batches of 1 and of 2 rows, and no others."""
    for number in range(rounds * NUM_UNTIL_STALE):
        rows = 1 + number % 2
        time.add(rows, 0.004 + 0.001 * rows)


@pytest.mark.parametrize("slow", [1, NUM_KEPT])
def test_a_size_that_is_not_run_any_more_does_not_stay_slow(slow):
    time = BatchTime()
    for _ in range(slow):
        time.add(32, 10.0)
    run_others(time, 30)
    assert time.predict(32) == pytest.approx(0.036, rel=0.01)
    time.add(32, 0.05)
    assert time.predict(32) == 0.05


def test_of_a_size_that_is_not_run_the_faster_batches_are_remembered():
    time = BatchTime()
    for seconds in (0.03, 0.5, 0.5):
        time.add(32, seconds)
    assert time.predict(32) == 0.5
    run_others(time, 2)
    assert time.predict(32) == 0.03
    run_others(time, 10)
    assert time.predict(32) == 0.03


def test_a_time_that_falls_with_the_rows_is_taken_for_constant():
    time = BatchTime()
    time.add(1, 0.010)
    time.add(8, 0.002)
    assert time.per_row == 0.0
    assert time.overhead == pytest.approx(0.006)


@given(st.lists(st.tuples(st.integers(1, 512), st.floats(0.0, 1e3)), min_size=1, max_size=20))
def test_no_time_is_ever_negative(batches):
    time = BatchTime()
    for rows, seconds in batches:
        time.add(rows, seconds)
    assert time.overhead >= 0.0
    assert time.per_row >= 0.0
    assert all(time.predict(rows) >= 0.0 for rows in (1, 7, 512))
