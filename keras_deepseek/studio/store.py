"""The run records of a folder as the page asks for them, with curves reduced to its pixels."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio.curve_findings import Thresholds
from keras_deepseek.studio.findings import find
from keras_deepseek.studio.run_reader import RunReader

MAX_PIXELS, MAX_SERIES = 4096, 1000
_SUFFIX = ".sqlite"
_SECONDS_BETWEEN_FINDINGS = 3.0


class Store:
    """The run records of a folder and of its direct sub-folders.

    A run is named by its path below the folder, without the suffix. Only these names are opened, so
    that a request can't name another file.

    Args:
        folder: The folder, or one record.
        thresholds: The limits of the findings.
        clock: Function that returns the time in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - it is immutable
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.thresholds = thresholds
        self._clock = clock
        self._lock = threading.Lock()
        self._readers: dict[str, RunReader] = {}
        self._findings: dict[str, tuple[int, float, list[dict[str, Any]]]] = {}

    def refresh(self) -> dict[str, RunReader]:
        """Reads what has been written, and returns the runs by name, the oldest first."""
        paths = [self.folder] if self.folder.is_file() else self._list_files()
        base = self.folder.parent if self.folder.is_file() else self.folder
        with self._lock:
            readers = {}
            for path in paths:
                name = path.relative_to(base).as_posix().removesuffix(_SUFFIX)
                readers[name] = self._readers.get(name) or RunReader(path, self._clock)
                readers[name].refresh()
            order = sorted(readers, key=lambda name: (readers[name].begin() or 0, name))
            self._readers = {name: readers[name] for name in order}
            return self._readers

    def _list_files(self) -> list[Path]:
        paths = (*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(f"*/*{_SUFFIX}"))
        return [path for path in paths if path.is_file()]

    def run(self, name: object) -> RunReader:
        """Returns a run by its name.

        Raises:
            InvalidInputError: There is no such run.
        """
        if not isinstance(name, str) or (reader := self._find(name)) is None:
            raise InvalidInputError(f"There is no run {str(name)[:80]!r} in this folder.")
        return reader

    def _find(self, name: str) -> RunReader | None:
        return self._readers.get(name) or self.refresh().get(name)

    def poll(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns what has changed since the page last asked.

        Args:
            request: `seen` has the version of each run that the page knows; `series` is a list of
                `[run, name, version, pixels, smoothing]`; `x` and `window` say how to draw them;
                `vectors` has `[run, name, version]`; `findings_of` names a run.
        """
        readers = self.refresh()
        page_versions = request.get("seen") or {}
        changed = {
            name: {"version": reader.version, **reader.summary()}
            for name, reader in readers.items()
            if page_versions.get(name) != reader.version
        }
        answer: dict[str, Any] = {"runs": changed, "series": {}, "vectors": {}}
        if set(page_versions) != set(readers) or changed:
            answer["order"] = list(readers)
        answer["series"] = self.read_series(request, request.get("series") or [])
        for run, name, version, *_ in (request.get("vectors") or [])[:8]:
            if run in readers and version != readers[run].version:
                answer["vectors"][f"{run}\n{name}"] = {
                    "version": readers[run].version,
                    **self.read_vectors(run, name),
                }
        if (run := request.get("findings_of")) in readers:
            answer["findings"] = self.findings(run)
        return answer

    def read_series(
        self, request: dict[str, Any], series: Sequence[Sequence[Any]]
    ) -> dict[str, Any]:
        """Returns the series that are newer than the page's, reduced to its pixels."""
        window = request.get("window")
        low_high = None if window is None else (float(window[0]), float(window[1]))
        points_by_name = {}
        for run, name, version, num_pixels, smoothing in series[:MAX_SERIES]:
            reader = self._readers.get(run)
            if reader is None or name not in reader.ends:
                continue
            newest = reader.series_version(name) + reader.series_version(str(request.get("x")))
            if version == newest:
                continue
            pixels = int(np.clip(int(num_pixels), 16, MAX_PIXELS))
            share = float(np.clip(float(smoothing), 0, 1))
            x, y = self._read_points(reader, name, str(request.get("x", "step")))
            points = reduce_to_pixels(x, y, pixels, share=share, window=low_high)
            points_by_name[f"{run}\n{name}"] = {"version": newest, **points}
        return points_by_name

    def _read_points(
        self, reader: RunReader, name: str, axis: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns x and y of a name: x is the step, seconds, the epoch or another name's values."""
        series = reader.series(name)
        steps, values = series.steps, series.values
        if axis == "step":
            return steps, values
        if axis == "time":
            times = reader.times(name)[: len(values)]
            return times - (reader.begin() or 0.0), values[: len(times)]
        steps_per_epoch = reader.properties.get("steps_per_epoch")
        if axis == "epoch" and "epoch" not in reader.ends and steps_per_epoch:
            return steps / steps_per_epoch, values
        other = reader.series(axis)
        is_finite = np.isfinite(other.values)
        if not is_finite.any():
            return steps, values
        return np.interp(steps, other.steps[is_finite], other.values[is_finite]), values

    def read_vectors(self, run: str, name: str) -> dict[str, Any]:
        """Returns vectors as rows of a picture, with their steps."""
        vectors = self.run(run).vectors(name)
        matrix = vectors.matrix()
        stride = max(1, -(-matrix.shape[1] // 240))
        starts = np.arange(0, matrix.shape[1], stride)
        counts = np.diff([*starts, matrix.shape[1]])
        means = np.add.reduceat(matrix, starts, axis=1) / counts if len(starts) else matrix
        rows = [[float(f"{v:.4g}") if np.isfinite(v) else None for v in row] for row in means]
        labels = vectors.labels or [str(index) for index in range(len(rows))]
        return {"labels": labels, "steps": vectors.steps[::stride], "rows": rows}

    def findings(self, run: str) -> list[dict[str, Any]]:
        """Returns a run's findings, the worst first; a running one's, anew every 3 seconds."""
        reader = self.run(run)
        version, at, findings = self._findings.get(run, (-1, 0.0, []))
        state = reader.state()
        if version == reader.version or (
            state == "running" and self._clock() - at < _SECONDS_BETWEEN_FINDINGS
        ):
            return findings
        findings = [vars(finding) for finding in find(reader, self.thresholds)]
        self._findings[run] = (reader.version, self._clock(), findings)
        return findings


_LARGE = 1e5


def smooth(values: np.ndarray, share: float) -> np.ndarray:
    """Returns centred means over a share of the series, such as 0.05.

    A mean that looks in both directions adds no delay to the curve. Missing points (NaN) stay
    missing, and no mean counts them.
    """
    half = int(len(values) * share / 2)
    if half < 1:
        return values
    is_finite = np.isfinite(values)
    # The sum of a window is the difference of two cumulative sums.
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
    """Returns the points of a curve, at most one for each pixel, as lists by name.

    `x` and `y` are the points after smoothing. If there are more points than pixels, `y` holds the
    mean of the points that a pixel stands for, and `least` and `most` hold their extremes before
    smoothing. Otherwise `raw` holds the points before smoothing, if smoothing changed them.

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
    # The index of the first point of each pixel. A pixel without points has that of the next one.
    starts = np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], pixels + 1)[:-1]))
    ends = np.append(starts[1:], len(x))
    is_finite = np.isfinite(means)
    counts = np.add.reduceat(is_finite, starts, dtype=float)
    with np.errstate(invalid="ignore"):
        mean = np.add.reduceat(np.where(is_finite, means, 0.0), starts) / np.where(
            counts > 0, counts, np.nan
        )
    return {
        "x": _as_list(x[(starts + ends - 1) // 2]),  # The middle point.
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
