"""Smoothing and reduction of a series to the pixels of a chart, over all of its points."""

from typing import Any

import numpy as np

_LARGE = 1e5


def smooth(values: np.ndarray, share: float) -> np.ndarray:
    """Returns centred means over a share of the series, such as 0.05, without missing points.

    A mean that looks in both directions adds no delay to the curve.
    """
    half = int(len(values) * share / 2)
    if half < 1:
        return values
    is_finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_finite)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    num_finite = counts[last] - counts[first]
    with np.errstate(invalid="ignore"):
        return np.where(is_finite, (sums[last] - sums[first]) / np.maximum(num_finite, 1), np.nan)


def reduce_to_pixels(
    x: np.ndarray,
    y: np.ndarray,
    pixels: int,
    *,
    share: float = 0.0,
    window: tuple[float, float] | None = None,
) -> dict[str, list[Any]]:
    """Returns the points of a curve, at most one for each pixel.

    `y` holds the means. `least` and `most` are the extremes of the points that a pixel stands for,
    before smoothing; without them each point is there. `raw` has the points before smoothing.

    Args:
        x: The place of each point.
        y: The value of each point.
        pixels: The width of the chart.
        share: The share of the series that is smoothed over.
        window: The range of x on the screen. One point beyond each end is kept.
    """
    if len(x) > 1 and np.any(np.diff(x) < 0):
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    y = np.where(np.isfinite(y), y, np.nan)
    means = smooth(y, share)
    if window is not None:
        first = max(int(np.searchsorted(x, window[0])) - 1, 0)
        last = int(np.searchsorted(x, window[1], side="right")) + 1
        x, y, means = x[first:last], y[first:last], means[first:last]
    if len(x) <= pixels:
        points = {"x": _as_list(x), "y": _as_list(means)}
        return points if means is y or share == 0 else {**points, "raw": _as_list(y)}
    starts = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], pixels + 1)[:-1]))
    ends = np.append(starts[1:], len(x))
    is_finite = np.isfinite(means)
    counts = np.add.reduceat(is_finite, starts, dtype=float)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(is_finite, means, 0.0), starts) / np.where(
            counts > 0, counts, np.nan
        )
    return {
        "x": _as_list(x[(starts + ends - 1) // 2]),
        "y": _as_list(mean),
        "least": _as_list(np.fmin.reduceat(y, starts)),
        "most": _as_list(np.fmax.reduceat(y, starts)),
    }


def _as_list(values: np.ndarray) -> list[Any]:
    """Returns numbers for JSON, rounded to six digits, with `None` for what is not finite."""
    if values.dtype.kind in "iu":
        return list(values.tolist())
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** np.clip(5 - np.floor(np.log10(np.abs(values))), -300, 300)
        # Far from 0, as times are, more digits are needed than six.
        rounded = np.where(np.abs(values) < _LARGE, np.round(values * scale) / scale, values)
    rounded = np.where(values == 0, 0.0, rounded)
    if np.isfinite(rounded).all():
        return list(rounded.tolist())
    return [value if np.isfinite(value) else None for value in rounded.tolist()]
