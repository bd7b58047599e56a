"""Counts what an engine's servers answer and what it loads, whatever protocol is spoken.

`metrics` reads it. What goes on inside of a model's batcher stands in its `BatchTotals`.
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
"""How long the numbers of what is served no more are kept: whoever scrapes each minute, and misses
some, has seen the last of them."""

MAX_GONE = 256
"""Models and versions, served no more, whose numbers are kept. The first that went is the first to
be forgotten."""

_Version = tuple[str, str]


class EngineMonitor:
    """Counters of one engine. Any thread may use it.

    The numbers of a version end some minutes after it is served no more, so that an engine which
    loads new versions for months does not grow.

    Args:
        is_served: Function of a model's name and of a version, as strings, that says whether it is
            served; of a model as such, where the version is empty. Defaults to `None`: all are.
        clock: Function that returns the time in seconds. Defaults to `time.monotonic`.
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
        """Since when each is known to be served no more: the first that went is the first."""

    def end(self, trace: RequestTrace, status: int | str) -> float:
        """Counts a request whose answer is sent, or whose client is gone.

        Args:
            trace: `RequestTrace`.
            status: integer or string. In the protocol's words.

        Returns:
            The seconds that it took.
        """
        seconds = time.monotonic() - trace.started
        called = (trace.model, trace.version, trace.protocol, trace.call)
        key = (called, str(status))
        with self._lock:
            self._answers[key] = self._answers.get(key, 0) + 1
            latency = self._latencies.get(called)
            if latency is None:
                latency = self._latencies[called] = Histogram(SECONDS)
                self._forget_gone()  # Nothing grows but here and in `loading`.
            latency.add(seconds)
        return seconds

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Counts what is done inside as a load, which has failed where it raises.

        Args:
            model: string. The model's name.
        """
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
        """Returns how many requests were answered, by what was called and by status."""
        with self._lock:
            self._forget_gone()
            return dict(self._answers)

    def latencies(self) -> dict[Called, HistogramValues]:
        """Returns the seconds that requests took, by what was called."""
        with self._lock:
            self._forget_gone()
            return {called: histogram.values() for called, histogram in self._latencies.items()}

    def loads(self) -> dict[tuple[str, str], int]:
        """Returns how many loads there were, by model and by `"success"` or `"failure"`."""
        with self._lock:
            self._forget_gone()
            return dict(self._loads)

    def load_seconds(self) -> dict[str, float]:
        """Returns the seconds that each model's last load took, its warm-up among them."""
        with self._lock:
            return dict(self._load_seconds)

    def _forget_gone(self) -> None:
        """Drops the numbers of what has been gone for long. The lock is held."""
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
