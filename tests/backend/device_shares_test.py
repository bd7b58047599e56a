import numpy as np
import pytest

from keras_deepseek.backend.device_shares import DeviceShares


def run(shares, speeds, num_steps, num_rows=100):
    """Makes steps on devices of such speeds, in rows a second; returns the rows of the last."""
    for _ in range(num_steps):
        rows = np.diff(shares.cut(num_rows))
        shares.learn(rows, rows / np.asarray(speeds))
    return np.diff(shares.cut(num_rows)).tolist()


def test_devices_begin_as_equals_and_get_what_they_are_fast_enough_for():
    shares = DeviceShares(2)
    assert shares.cut(100).tolist() == [0, 50, 100]
    assert run(shares, [30.0, 10.0], 1) == [75, 25]


def test_speeds_that_drift_change_the_shares_after_some_steps():
    shares = DeviceShares(2)
    run(shares, [30.0, 10.0], 5)
    assert run(shares, [10.0, 30.0], 1) != [25, 75]
    assert run(shares, [10.0, 30.0], 30) == pytest.approx([25, 75], abs=3)


def test_speeds_that_change_a_little_leave_the_shares_alone():
    shares = DeviceShares(2)
    run(shares, [30.0, 10.0], 3)
    before = shares.shares
    run(shares, [31.0, 10.0], 20)
    assert shares.shares is before


def test_all_rows_are_given_and_a_slow_device_keeps_a_few_to_show_that_it_is_faster_now():
    shares = DeviceShares(3)
    assert run(shares, [1000.0, 500.0, 1e-6], 3, num_rows=300) == pytest.approx([198, 99, 3], abs=1)
    for num_rows in (0, 1, 2, 7):
        cuts = shares.cut(num_rows)
        assert (cuts[0], cuts[-1]) == (0, num_rows)
        assert np.all(np.diff(cuts) >= 0)


def test_who_has_had_no_row_is_not_judged():
    shares = DeviceShares(2)
    shares.learn([1, 0], [0.1, 0.1])
    np.testing.assert_array_equal(shares.shares, [0.5, 0.5])
    shares.learn([1, 1], [0.1, 0.3])
    np.testing.assert_allclose(shares.shares, [0.75, 0.25])
    shares.learn([1, 0], [0.1, 0.0])
    np.testing.assert_allclose(shares.shares, [0.75, 0.25])
