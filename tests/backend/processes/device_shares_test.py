import numpy as np
import pytest

from keras_deepseek.backend.processes.device_shares import DeviceShares


def run(shares, speeds, num_steps, num_rows=100):
    """Makes steps on devices of such speeds, in rows a second; returns the rows of the next."""
    for _ in range(num_steps):
        rows = np.diff(shares.cut(num_rows))
        shares.learn(rows, rows / np.asarray(speeds))
    return np.diff(shares.cut(num_rows)).tolist()


def test_devices_begin_as_equals_and_get_what_they_are_fast_enough_for():
    shares = DeviceShares(2)
    assert shares.cut(100).tolist() == [0, 50, 100]
    assert run(shares, [30.0, 10.0], 2) == [75, 25]


def test_the_first_step_in_which_much_is_made_counts_for_nothing():
    shares = DeviceShares(2)
    assert run(shares, [1.0, 1_000.0], 1) == [50, 50]
    assert run(shares, [30.0, 10.0], 1) == [75, 25]


def test_speeds_that_drift_change_the_shares_after_some_steps():
    shares = DeviceShares(2)
    run(shares, [30.0, 10.0], 6)
    assert run(shares, [10.0, 30.0], 1) != [25, 75]
    assert run(shares, [10.0, 30.0], 30) == pytest.approx([25, 75], abs=3)


def test_speeds_that_change_a_little_leave_the_shares_alone():
    shares = DeviceShares(2)
    run(shares, [30.0, 10.0], 3)
    old_shares = shares.shares
    run(shares, [31.0, 10.0], 20)
    assert shares.shares is old_shares


@pytest.mark.parametrize("num_rows", [32, 300])
def test_a_slow_device_keeps_a_row_to_show_that_it_has_become_fast(num_rows):
    shares = DeviceShares(3)
    *_, last = run(shares, [1_000.0, 500.0, 1e-3], 5, num_rows)
    assert last == 1
    rows = run(shares, [1_000.0, 500.0, 1_500.0], 60, num_rows)
    assert rows == pytest.approx([num_rows / 3, num_rows / 6, num_rows / 2], abs=0.04 * num_rows)


def test_all_rows_are_given_and_each_device_has_one_where_there_are_enough():
    shares = DeviceShares(3)
    for fractions in ([1 / 3] * 3, [0.98, 0.02, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
        shares.shares = np.array(fractions)
        for num_rows in (0, 1, 2, 3, 7, 100):
            cuts = shares.cut(num_rows)
            assert (cuts[0], cuts[-1]) == (0, num_rows)
            assert np.all(np.diff(cuts) >= (num_rows >= 3)), (fractions, cuts)


def test_who_has_had_no_row_is_not_judged():
    shares = DeviceShares(2)
    shares.learn([1, 1], [0.1, 0.1])
    shares.learn([1, 0], [0.1, 0.1])
    np.testing.assert_array_equal(shares.shares, [0.5, 0.5])
    shares.learn([1, 1], [0.1, 0.3])
    np.testing.assert_allclose(shares.shares, [0.75, 0.25])
    shares.learn([1, 0], [0.1, 0.0])
    np.testing.assert_allclose(shares.shares, [0.75, 0.25])
