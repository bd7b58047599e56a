"""Counts what an engine's servers answer and what it loads, whatever protocol is spoken.

`metrics` reads it. What goes on inside of a model's batcher stands in its `BatchTotals`.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from keras_deepseek.inference.histogram import SECONDS, Histogram, HistogramValues
from keras_deepseek.inference.request_trace import RequestTrace

Called = tuple[str, str, str, str]
"""Model, version, protocol and call."""


class EngineMonitor:
    """Counters of one engine. Any thread may use it."""

    def __init__(self) -> None:
        self.started = time.time()
        self._lock = threading.Lock()
        self._answers: dict[tuple[Called, str], int] = {}
        self._latencies: dict[Called, Histogram] = {}
        self._loads: Counter[tuple[str, str]] = Counter()
        self._load_seconds: dict[str, float] = {}

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

    def answers(self) -> dict[tuple[Called, str], int]:
        """Returns how many requests were answered, by what was called and by status."""
        with self._lock:
            return dict(self._answers)

    def latencies(self) -> dict[Called, HistogramValues]:
        """Returns the seconds that requests took, by what was called."""
        with self._lock:
            return {called: histogram.values() for called, histogram in self._latencies.items()}

    def loads(self) -> dict[tuple[str, str], int]:
        """Returns how many loads there were, by model and by `"success"` or `"failure"`."""
        with self._lock:
            return dict(self._loads)

    def load_seconds(self) -> dict[str, float]:
        """Returns the seconds that each model's last load took, its warm-up among them."""
        with self._lock:
            return dict(self._load_seconds)
