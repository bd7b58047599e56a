"""Smoothing and reduction, against plain loops."""

import numpy as np
import pytest

from keras_deepseek.studio.reduction import reduce_to_pixels, smooth


def test_smoothing_is_a_centred_mean_over_all_known_points():
    values = np.random.default_rng(0).normal(size=50)
    values[7] = np.nan
    expected = [
        np.nan if np.isnan(values[i]) else np.nanmean(values[max(i - 5, 0) : i + 6])
        for i in range(50)
    ]
    np.testing.assert_allclose(smooth(values, 0.2), expected)


def test_a_pixel_has_the_least_the_largest_and_the_mean_of_its_points():
    x, y = np.arange(1000), np.random.default_rng(0).normal(size=1000)
    points = reduce_to_pixels(x, y, 10)
    assert len(points["x"]) == 10
    for start, least, mean, most in zip(
        range(0, 1000, 100), points["least"], points["y"], points["most"], strict=True
    ):
        part = y[start : start + 100]
        assert least == pytest.approx(part.min(), rel=1e-5)
        assert most == pytest.approx(part.max(), rel=1e-5)
        assert mean == pytest.approx(part.mean(), rel=1e-4, abs=1e-6)


def test_no_extreme_point_is_lost():
    y = np.zeros(100_000)
    y[[12_345, 77_777]] = 5, -5
    points = reduce_to_pixels(np.arange(100_000), y, 300)
    assert (max(points["most"]), min(points["least"])) == (5, -5)


def test_few_points_are_all_there_and_missing_ones_are_null():
    points = reduce_to_pixels(np.arange(4), np.array([1.0, np.nan, np.inf, 123456.789]), 100)
    assert points == {"x": [0, 1, 2, 3], "y": [1.0, None, None, 123456.789]}


def test_smoothed_points_come_with_the_raw_ones():
    points = reduce_to_pixels(np.arange(20), np.arange(20.0) ** 2, 100, share=0.2)
    assert points["raw"] == [float(n) for n in np.arange(20) ** 2]
    assert points["y"] != points["raw"]


def test_a_window_keeps_a_point_beyond_each_end():
    points = reduce_to_pixels(np.arange(100), np.arange(100.0), 100, window=(10, 20))
    assert points["x"] == list(range(9, 22))


def test_an_axis_that_goes_back_is_sorted():
    assert reduce_to_pixels(np.array([3, 1, 2]), np.array([30.0, 10, 20]), 9)["y"] == [10, 20, 30]
