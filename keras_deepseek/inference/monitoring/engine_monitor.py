"""Counters of the requests and the loads of an engine, for all protocols.

`server.metrics` reads them. `BatchTotals` has the counters of a model's batches.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from keras_deepseek.inference.histogram import SECONDS, Histogram, HistogramValues
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

Called = tuple[str, str, str, str]
"""Model, version, protocol and call."""

KEEP_SECONDS = 300.0
"""Seconds that the counters of an unloaded version are kept, so that a scraper which comes once a
minute and misses some scrapes still sees the last values."""

MAX_GONE = 256
"""The number of unloaded models and versions whose counters are kept. The oldest are dropped."""

RATE_SECONDS = 10
"""The number of last whole seconds in which arrivals are counted for the rate."""

_Version = tuple[str, str]


class _Arrivals:
    """Counts the requests to one model: all, those in flight, and the arrivals of each second."""

    def __init__(self) -> None:
        self.total = self.in_flight = 0
        self._seconds: deque[tuple[int, int]] = deque(maxlen=RATE_SECONDS + 1)

    def add(self, second: int) -> None:
        self.total += 1
        self.in_flight += 1
        count = self._seconds.pop()[1] if self._seconds and self._seconds[-1][0] == second else 0
        self._seconds.append((second, count + 1))

    def rate(self, second: int) -> float:
        counted = range(second - RATE_SECONDS, second)
        return sum(count for arrived, count in self._seconds if arrived in counted) / RATE_SECONDS


@dataclass(frozen=True)
class Arrivals:
    """The requests that have arrived for a model.

    Args:
        total: The number of all requests.
        in_flight: The number of requests that are not answered yet.
        per_second: The mean number of arrivals in the last `RATE_SECONDS` whole seconds.
    """

    total: int
    in_flight: int
    per_second: float


class EngineMonitor:
    """Counts the requests, answers and loads of one engine. Any thread may use it.

    The counters of a version are dropped some minutes after it is unloaded, so that an engine that
    loads new versions for months does not grow. `is_served` takes a model's name and a version as
    strings; an empty version stands for the model.
    """

    def __init__(
        self,
        is_served: Callable[[str, str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.started = time.time()
        self._is_served = is_served or (lambda _model, _version: True)
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[tuple[Called, str], int] = {}
        self._latencies: dict[Called, Histogram] = {}
        self._arrivals: dict[str, _Arrivals] = {}
        self._loads: Counter[tuple[str, str]] = Counter()
        self._load_seconds: dict[str, float] = {}
        self._gone: dict[_Version, float] = {}
        """The time when each unloaded version was first seen to be gone, the oldest first."""

    def arrive(self, trace: RequestTrace) -> None:
        """Counts a request for the model of a trace, once. It is in flight until `end`."""
        if trace.has_arrived:
            return
        trace.has_arrived = True
        with self._lock:
            arrivals = self._arrivals.get(trace.model)
            if arrivals is None:
                arrivals = self._arrivals[trace.model] = _Arrivals()
                self._forget_gone()
            arrivals.add(int(self._clock()))

    def end(self, trace: RequestTrace, status: int | str) -> float:
        """Counts a request that was answered, or whose client is gone; returns its seconds."""
        seconds = time.monotonic() - trace.started
        called = (trace.model, trace.version, trace.protocol, trace.call)
        key = (called, str(status))
        with self._lock:
            self._answers[key] = self._answers.get(key, 0) + 1
            if trace.has_arrived and trace.model in self._arrivals:
                trace.has_arrived = False
                self._arrivals[trace.model].in_flight -= 1
            latency = self._latencies.get(called)
            if latency is None:
                latency = self._latencies[called] = Histogram(SECONDS)
                self._forget_gone()  # The counters grow only here and in `loading`.
            latency.add(seconds)
        return seconds

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Context manager that counts a load of a model, as failed if the block raises."""
        start, result = time.monotonic(), "failure"
        try:
            yield
            result = "success"
        finally:
            with self._lock:
                self._loads[model, result] += 1
                if result == "success":
                    self._load_seconds[model] = time.monotonic() - start
                self._forget_gone()

    def arrivals(self) -> dict[str, Arrivals]:
        """Returns the arrived requests, by model."""
        with self._lock:
            self._forget_gone()
            second = int(self._clock())
            return {
                model: Arrivals(arrivals.total, arrivals.in_flight, arrivals.rate(second))
                for model, arrivals in self._arrivals.items()
            }

    def answers(self) -> dict[tuple[Called, str], int]:
        """Returns the number of answered requests, by API call and status."""
        with self._lock:
            self._forget_gone()
            return dict(self._answers)

    def latencies(self) -> dict[Called, HistogramValues]:
        """Returns the histograms of request durations in seconds, by API call."""
        with self._lock:
            self._forget_gone()
            return {called: histogram.values() for called, histogram in self._latencies.items()}

    def loads(self) -> dict[tuple[str, str], int]:
        """Returns the number of model loads, by model and by `"success"` or `"failure"`."""
        with self._lock:
            self._forget_gone()
            return dict(self._loads)

    def load_seconds(self) -> dict[str, float]:
        """Returns the seconds of each model's last load, with its warm-up."""
        with self._lock:
            return dict(self._load_seconds)

    def _forget_gone(self) -> None:
        """Drops the counters of versions that are long gone. The caller holds the lock."""
        now = self._clock()
        versions: set[_Version] = {called[:2] for called in self._latencies}
        versions.update((model, "") for model, _ in self._loads)
        versions.update((model, "") for model in self._arrivals)
        for version in versions:
            if version[0] and not self._is_served(*version):
                self._gone.setdefault(version, now)
            else:
                self._gone.pop(version, None)
        late = [version for version, since in self._gone.items() if now - since >= KEEP_SECONDS]
        surplus = list(self._gone)[: max(len(self._gone) - MAX_GONE, 0)]
        for version in {*late, *surplus}:
            self._forget(version)

    def _forget(self, version: _Version) -> None:
        del self._gone[version]
        for called in [key for key in self._latencies if key[:2] == version]:
            del self._latencies[called]
        for key in [key for key in self._answers if key[0][:2] == version]:
            del self._answers[key]
        model, number = version
        if not number:
            self._load_seconds.pop(model, None)
            self._arrivals.pop(model, None)
            for result in ("success", "failure"):
                self._loads.pop((model, result), None)
