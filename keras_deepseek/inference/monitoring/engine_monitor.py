"""Counters of the requests and the loads of an engine, for all protocols.

`server.metrics` reads them. `BatchTotals` has the counters of a model's batches.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from keras_deepseek.inference.histogram import SECONDS, Histogram, HistogramValues
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

Called = tuple[str, str, str, str]
"""Model, version, protocol and call."""

KEEP_SECONDS = 300.0
"""Seconds that the counters of an unloaded version are kept, so that a scraper which comes once a
minute and misses some scrapes still sees the last values."""

MAX_GONE = 256
"""The number of unloaded models and versions whose counters are kept. The oldest are dropped."""

_Version = tuple[str, str]


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
        self._loads: Counter[tuple[str, str]] = Counter()
        self._load_seconds: dict[str, float] = {}
        self._gone: dict[_Version, float] = {}
        """The time when each unloaded version was first seen to be gone, the oldest first."""

    def end(self, trace: RequestTrace, status: int | str) -> float:
        """Counts a request that was answered, or whose client is gone; returns its seconds."""
        seconds = time.monotonic() - trace.started
        called = (trace.model, trace.version, trace.protocol, trace.call)
        key = (called, str(status))
        with self._lock:
            self._answers[key] = self._answers.get(key, 0) + 1
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
        known: set[_Version] = {called[:2] for called in self._latencies}
        known.update((model, "") for model, _ in self._loads)
        for version in known:
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
        for called in [one for one in self._latencies if one[:2] == version]:
            del self._latencies[called]
        for key in [one for one in self._answers if one[0][:2] == version]:
            del self._answers[key]
        model, number = version
        if not number:
            self._load_seconds.pop(model, None)
            for result in ("success", "failure"):
                self._loads.pop((model, result), None)
